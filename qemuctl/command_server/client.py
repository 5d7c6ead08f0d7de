"""Asking a command server for a command, and waiting for its end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from qemuctl.command_server import wire


class Command:
    """A command that runs in a worker; the worker is killed when this is closed."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self.pid = pid

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; the negative number of the signal that ended it.

        ``timeout`` is in seconds.

        Raises:
            TimeoutError: it still runs.
            EOFError: the server has ended, and the worker with it.
        """
        self._connection.settimeout(timeout)
        return os.waitstatus_to_exitcode(wire.number(self._connection))

    def close(self) -> None:
        self._connection.close()


def start(
    server: Path,
    argv: Sequence[str],
    *,
    streams: Mapping[int, int],
    env: Mapping[str, str] | None = None,
    folder: str | Path = ".",
    timeout: float = 10.0,
) -> Command:
    """Starts a command in a worker of the server that listens on ``server``.

    ``argv`` begins with the program's name. ``streams`` gives our descriptor for
    each of 0, 1 and 2 that the command has; they stay ours. ``env`` is this
    process's own by default. ``timeout``, in seconds, is for the worker to be there.

    Raises:
        OSError: there is no server, or it does not answer.
        EOFError: the server refuses, or cannot fork.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(server))
        working = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            request = wire.Request(
                argv=list(argv),
                env=dict(os.environ if env is None else env),
                umask=_umask(),
                streams=list(streams),
                ignored=_ignored(),
            )
            wire.send(connection, request, [working, *streams.values()])
        finally:
            os.close(working)
        return Command(connection, wire.number(connection))
    except BaseException:
        connection.close()
        raise


def _umask() -> int:
    """This process's umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _ignored() -> list[int]:
    """The signals that this process ignores by somebody else's wish."""
    ours = {signal.SIGPIPE, signal.SIGXFSZ}  # Python's own
    return [
        number
        for number in signal.valid_signals() - ours
        if signal.getsignal(number) is signal.SIG_IGN
    ]
