"""A forked worker becomes the command: streams, environment, folder, signals."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from qemuctl.command_server import become, wire
from qemuctl.command_server.request import Request

_PR_SET_PDEATHSIG = 1  # prctl(2)
# What Python itself ignores when it starts.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Program:
    """What a worker runs: ``command`` reads `sys.argv` and ends as a program does.

    ``admit`` gets the request and its client's pid; it makes the worker what else it
    has to be, and raises OSError or ValueError where that cannot be.
    """

    command: Callable[[], object]
    admit: Callable[[Request, int], object] = lambda *_: None


@dataclass(frozen=True)
class Start:
    """What a worker is started with: the client's request, its pid and descriptors, and
    two of our own: the connection to it, and ``link``, which leads to the parent."""

    request: Request
    pid: int
    fds: list[int]
    client: int
    link: int


def run(program: Program, start: Start, parent: int) -> NoReturn:
    """Runs the command that the client asks for, and ends this process.

    Says on the link when it is ready, and begins when it hears of it. What is not to be
    had ends the worker before.
    """
    status = 1
    try:
        die_with(parent)
        os.setpgid(0, 0)
        # Of what cannot be prepared, the client does the work itself.
        with contextlib.suppress(OSError, ValueError):
            link = _prepare(program, start)
            os.write(link, b"r")
            if os.read(link, 1):
                os.close(link)
                if signal.SIGINT not in start.request.ignored:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                status = _status(program.command)
                _tell(become.client, status)
    finally:
        # The interpreter's own end would take apart what all workers share.
        os._exit(status)


def _tell(client: int | None, status: int) -> None:
    """Tells the client the exit status at once: the kernel takes milliseconds to undo a
    process of this size, of which only the open files matter to others. Of an end by
    a signal the parent tells."""
    if client is not None:
        _close_all_but([client])
        with contextlib.suppress(OSError):  # it may be gone
            os.write(client, wire.RECORD.pack(wire.STATUS, status << 8))


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, whatever ends it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prepare(program: Program, start: Start) -> int:
    """Makes this process what the client's own would be; gives the link's descriptor.

    Raises:
        OSError, ValueError: it cannot be made so.
    """
    request = start.request
    program.admit(request, start.pid)
    _signals(request.ignored)
    folder, *given = start.fds
    os.fchdir(folder)  # by descriptor: it may have been removed
    link, become.client = _place(given, request.numbers, (start.link, start.client))
    os.umask(request.umask)
    os.environ.clear()
    os.environb.update(request.env)
    time.tzset()
    sys.argv = [os.fsdecode(word) for word in request.argv]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        has_it = number in request.numbers
        stream = _stream(number, request.encodings[number]) if has_it else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return link


def _place(given: list[int], numbers: list[int], own: tuple[int, int]) -> list[int]:
    """Gives each descriptor its number, and closes all others but our own, of which it
    gives the new numbers."""
    above = max([2, *numbers]) + 1
    held = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in (*own, *given)]
    _close_all_but(held)
    kept, moved = held[:2], held[2:]
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    return kept


def _close_all_but(kept: list[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))


def _signals(ignored: list[int]) -> None:
    """Sets all signals as Python finds or sets them when it starts, but for SIGINT,
    which raises an exception only when there is somebody to catch it."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        ignore = number in ignored or number in _IGNORED_BY_PYTHON
        signal.signal(number, signal.SIG_IGN if ignore else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _stream(number: int, encoding: str) -> Any:
    """A standard stream, encoded and buffered as Python does when it starts.

    Raises:
        LookupError, OSError, ValueError: it cannot be.
    """
    codec, errors, through = encoding.split(":")
    at_once = through == "1"
    mode, buffering = ("rb", -1) if number == 0 else ("wb", 0 if at_once else -1)
    return io.TextIOWrapper(
        open(number, mode, buffering=buffering, closefd=False),
        encoding=codec,
        errors=errors,
        line_buffering=number == 2 or os.isatty(number),
        write_through=at_once,
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
