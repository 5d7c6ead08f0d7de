"""A forked worker becomes the command: streams, environment, folder, signals."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from qemuctl.command_server import wire

# A client sends its request at once; one that is stopped must not stay for ever.
_PATIENCE = 10.0  # seconds
_PR_SET_PDEATHSIG = 1  # prctl(2)
# What Python itself ignores when it starts.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_LIBC = ctypes.CDLL(None)


def run(
    connection: socket.socket, command: Callable[[], object], parent: int
) -> NoReturn:
    """Runs the command that the client asks for, and ends this process."""
    status = 1
    try:
        _die_with(parent)
        os.setsid()
        request, fds = _request(connection)
        status = _run_as(request, fds, command)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        # The interpreter's own end would take apart what all workers share.
        os._exit(status)


def _request(connection: socket.socket) -> tuple[wire.Request, list[int]]:
    """What the client asks for, its descriptors above those that they will replace."""
    connection.settimeout(_PATIENCE)
    try:
        request, fds = wire.receive(connection)
    except (EOFError, OSError, TypeError, ValueError):
        os._exit(1)  # the client has gone, or is none
    connection.close()
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in fds]
    for fd in fds:
        os.close(fd)
    return request, above


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when the server ends: the client would
    never hear of its end."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run_as(
    request: wire.Request, fds: list[int], command: Callable[[], object]
) -> int:
    """Runs the command with what its client has; the exit status."""
    _signals(request.ignored)
    folder, *streams = fds
    os.fchdir(folder)  # by descriptor: it may have been removed
    os.close(folder)
    for number in range(3):
        if number in request.streams:
            os.dup2(streams[request.streams.index(number)], number)
        else:
            _close(number)
    for fd in streams:
        os.close(fd)
    os.umask(request.umask)
    os.environ.clear()
    os.environ.update(request.env)
    time.tzset()
    sys.argv = request.argv
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, name) if number in request.streams else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return _status(command)


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # the server may have been without it
        os.close(fd)


def _signals(ignored: list[int]) -> None:
    """Sets all signals as Python finds or sets them when it starts."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        ignore = number in ignored or number in _IGNORED_BY_PYTHON
        signal.signal(number, signal.SIG_IGN if ignore else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _stream(number: int, name: str) -> Any:
    """A standard stream, encoded and buffered as Python does when it starts."""
    server: Any = getattr(sys, f"__{name}__")
    return open(
        number,
        "r" if number == 0 else "w",
        buffering=1 if number == 2 else -1,
        encoding=server.encoding if server else "utf-8",
        errors=server.errors if server else "backslashreplace",
        closefd=False,
    )


def _status(command: Callable[[], object]) -> int:
    """Runs it to its end, that of its threads included; the exit status."""
    try:
        command()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 (whatever it is, Python would print it)
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)  # noqa: T201 (as Python does)
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # noqa: SLF001 (os._exit does not)
    return (code or 0) & 0xFF if _flushed() else 120


def _flushed() -> bool:
    """Writes out what is still held; 120 is Python's status where that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            return False
    return True
