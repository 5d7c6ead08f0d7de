"""The parent of one worker, which stands between it and its client.

It is forked from the server and lives as long as the worker. The worker's end, also by
a signal, is known only to its parent, and a command that runs must not depend on a
server that may be ended, stopped or replaced meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from typing import NoReturn

from qemuctl.command_server import request, wire, worker

# A client sends its request at once; one that is stopped must not stay for ever.
_PATIENCE = 10.0  # seconds
# What a terminal sends to a whole process group, and only that one can continue.
_OF_GROUPS = (signal.SIGTSTP, signal.SIGCONT)


def run(connection: socket.socket, program: worker.Program) -> NoReturn:
    """Starts a worker for the client, and ends this process when both have ended."""
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        # The worker gets a process group of its own in this session: one whose parent
        # were in another session could not be stopped (setpgid(2)).
        os.setsid()
        connection.settimeout(_PATIENCE)
        connection.sendall(wire.RECORD.pack(wire.HELLO, 0))
        asked, fds = request.receive(connection)
        connection.settimeout(None)
        ours, theirs = socket.socketpair()
        client, _ = client_of(connection)
        start = worker.Start(asked, client, fds, connection.fileno(), theirs.fileno())
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            worker.run(program, start, parent)
        theirs.close()
        for fd in fds:
            os.close(fd)
        if ours.recv(1):  # otherwise it cannot be what the client asks for
            connection.sendall(wire.RECORD.pack(wire.READY, pid))
            _accompany(connection, ours, pid)
    except (EOFError, OSError, ValueError):
        pass  # the client has gone, or is none; or there is no room for a process
    finally:
        os._exit(0)


def client_of(connection: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end (SO_PEERCRED, unix(7))."""
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid, uid, _ = struct.unpack("3i", credentials)
    return int(pid), int(uid)


def _accompany(connection: socket.socket, link: socket.socket, pid: int) -> None:
    """Passes on what the client sends, until the worker ends or the client does, with
    which a command dies."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(connection, select.POLLIN)
    while pidfd not in {fd for fd, _ in poll.poll()}:
        said = connection.recv(64)
        if not said:
            os.kill(pid, signal.SIGKILL)
            return
        for number in said:
            if number == wire.GO:
                link.sendall(b"g")
            else:
                _signal(pid, number)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # another program may have its place
        connection.sendall(wire.RECORD.pack(wire.STATUS, status))


def _signal(pid: int, number: int) -> None:
    """The worker is our child that has not been waited for: the pid is its own."""
    if number in _OF_GROUPS:
        os.killpg(pid, number)
    else:
        os.kill(pid, number)
