"""Asking a command server for a command from a process that goes on by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from qemuctl.command_server import client, wire

_ERRORS = ("strict", "strict", "backslashreplace")  # as Python does


class Command:
    """A command that runs in a worker; the worker is killed when this is closed."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self.pid = pid

    def send_signal(self, number: int) -> None:
        self._connection.sendall(bytes([number]))

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; the negative number of the signal that ended it.

        ``timeout`` is in seconds. Raises TimeoutError while it runs, EOFError when the
        worker's parent was killed, and the worker with it.
        """
        self._connection.settimeout(timeout)
        return os.waitstatus_to_exitcode(wire.expect(self._connection, wire.STATUS))

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
    identity: str = "",
) -> Command:
    """Starts a command in a worker of the server that listens on ``server``.

    ``argv`` begins with the program's name. ``streams`` gives our descriptor for each
    number that the command has; they stay ours. ``env`` is this process's own by
    default. ``timeout``, in seconds, is for the worker to be there.

    Raises OSError when there is no server or no answer, EOFError when it refuses.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(server))
        wire.expect(connection, wire.HELLO)
        words = [os.fsencode(word) for word in argv]
        pairs = (os.environ if env is None else env).items()
        working = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            wire.send(
                connection, words, [os.fsencode(f"{k}={v}") for k, v in pairs],
                identity=identity, umask=client._umask(), ignored=client._ignored(),
                numbers=list(streams),
                encodings=[f"utf-8:{x}:0" for x in _ERRORS],
                fds=[working, *streams.values()],
            )  # fmt: skip
        finally:
            os.close(working)
        pid = wire.expect(connection, wire.READY)
        connection.sendall(bytes([wire.GO]))
    except BaseException:
        connection.close()
        raise
    return Command(connection, pid)
