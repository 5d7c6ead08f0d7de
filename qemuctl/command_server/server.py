"""The server: one thread that accepts, forks, and tells how workers end."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from qemuctl.command_server import wire, worker
from qemuctl.structs import Struct

_BACKLOG = 128


class _Worker(Struct, kw_only=False):
    """``connection`` leads to the client, ``pidfd`` tells the worker's end."""

    pid: int
    pidfd: int
    connection: socket.socket

    def finish(self) -> None:
        """Reaps it, and tells its client the status."""
        _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):  # the client may be gone
            self.connection.sendall(wire.NUMBER.pack(status))
        self.close()

    def kill(self) -> None:
        """Ends it as its client was ended: a command dies with who asked for it."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        self.connection.close()
        os.close(self.pidfd)


class Server:
    """Serves ``command``, a function that reads `sys.argv` and ends as a program
    does, until ``lifeline`` is closed by whoever holds its other end."""

    def __init__(
        self, path: Path, command: Callable[[], object], lifeline: int | None = None
    ) -> None:
        self._command = command
        self._lifeline = lifeline
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(self._listener.fileno(), 0o600)
        # Under its name only when it listens: whoever finds it can connect.
        made = path.with_name(f"{path.name}.{os.getpid()}")
        self._listener.bind(os.fspath(made))
        self._listener.listen(_BACKLOG)
        made.replace(path)
        self._poll = select.poll()
        self._workers: dict[int, _Worker] = {}  # by both of its descriptors

    def serve(self) -> None:
        """Forks a worker for each client; returns when the lifeline closes.

        Workers that still run then are killed by the kernel when this process ends.
        """
        # What a worker never changes stays in pages that all of them share.
        gc.collect()
        gc.freeze()
        self._poll.register(self._listener, select.POLLIN)
        if self._lifeline is not None:
            self._poll.register(self._lifeline, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._lifeline:
                    return
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._workers:
                    self._heard(fd)

    def _heard(self, fd: int) -> None:
        """The worker has ended, or its client has gone."""
        served = self._workers.pop(fd)
        self._poll.unregister(fd)
        if fd != served.pidfd:
            served.kill()
            return
        if self._workers.pop(served.connection.fileno(), None) is not None:
            self._poll.unregister(served.connection)
        served.finish()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if _peer(connection) != os.getuid():
            connection.close()
            return
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            connection.close()  # its client does the work itself
            return
        if pid == 0:
            self._leave()
            worker.run(connection, self._command, parent)
        served = _Worker(pid, os.pidfd_open(pid), connection)
        self._workers |= {served.pidfd: served, connection.fileno(): served}
        self._poll.register(served.pidfd, select.POLLIN)
        # Not POLLIN: what the client sends is the worker's to read.
        self._poll.register(connection, select.POLLRDHUP)
        with contextlib.suppress(OSError):
            connection.sendall(wire.NUMBER.pack(pid))

    def _leave(self) -> None:
        """Closes, in a worker, what is the server's and the other workers'."""
        self._listener.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
        for fd, served in self._workers.items():
            if fd == served.pidfd:
                served.close()


def _peer(connection: socket.socket) -> int:
    """The user at the other end (SO_PEERCRED, unix(7))."""
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
