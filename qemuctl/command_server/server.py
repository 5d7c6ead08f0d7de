"""The server: one thread that accepts and forks."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from qemuctl.command_server import parent
from qemuctl.command_server.worker import Program, die_with

# A client is refused when so many are waiting, and goes its own way.
_BACKLOG = 512


class Server:
    """Serves a program until it is ended, or until it is ``stale``: its code on disk is
    not the one that it has loaded.

    With a ``lifeline`` it ends when whoever holds the other end closes it, and the
    commands that run with it; otherwise these do not depend on it.
    """

    def __init__(
        self,
        path: Path,
        program: Program,
        *,
        stale: Callable[[], bool] = lambda: False,
        lifeline: int | None = None,
    ) -> None:
        self._program = program
        self._stale = stale
        self._lifeline = lifeline
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(self._listener.fileno(), 0o600)
        # Under its name only when it listens: whoever finds it can connect.
        made = path.with_name(f"{path.name}.{os.getpid()}")
        self._listener.bind(os.fspath(made))
        self._listener.listen(_BACKLOG)
        made.replace(path)

    def serve(self) -> None:
        """Forks for each client; returns when there is no more to serve."""
        # Children are reaped by the kernel.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        # What a worker never changes stays in pages that all of them share.
        gc.collect()
        gc.freeze()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        if self._lifeline is not None:
            poll.register(self._lifeline, select.POLLIN)
        while self._lifeline not in {fd for fd, _ in poll.poll()}:
            connection, _ = self._listener.accept()
            with connection:
                if self._stale():
                    return
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        """A client of another user, or for whom there is no process, hears nothing."""
        if parent.client_of(connection)[1] != os.getuid():
            return
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            return
        if pid == 0:
            self._listener.close()
            if self._lifeline is not None:
                os.close(self._lifeline)
                die_with(server)
            parent.run(connection, self._program)
