"""Having a command server run the command of this process.

Nothing that is imported here takes time: all of it is built into the interpreter, or
loaded by it at its start.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # no stub
import os
import sys
from time import monotonic

from qemuctl.command_server.identity import VARIABLE, address, identity

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from _socket import socket
    from types import FrameType
    from typing import NoReturn

_PATIENCE = 0.8  # seconds, until the worker is ready
# They start and end servers, or need what no worker has: the terminal as their own,
# for programs that they start, or the shell as their parent.
_COLD = {"server", "edit", "view", "migrate", "migrate-recover",
         "--install-completion", "--show-completion"}  # fmt: skip
_FORWARDED = (
    _signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT,
    _signal.SIGCONT, _signal.SIGWINCH, _signal.SIGUSR1, _signal.SIGUSR2,
)  # fmt: skip


def run() -> None:
    """Has a server run this command, and ends this process as the command ends.

    Returns when no server can: nothing has been begun then.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    path = address()
    if os.environ.get(VARIABLE) == "no" or not os.path.exists(path):  # noqa: PTH110
        return
    if (sys.argv[1:2] and sys.argv[1] in _COLD) or _in_background():
        return
    try:
        connection = _ready(path)
    except (OSError, EOFError, ValueError):
        return
    _watch(connection)


def _in_background() -> bool:
    """Whether reading the terminal would stop this process (SIGTTIN): a worker, whose
    terminal it is not, would read what is meant for the shell."""
    try:
        return os.tcgetpgrp(0) != os.getpgrp()
    except OSError:  # not a terminal, or not ours
        return False


def _ready(path: str) -> socket:
    """The connection to a worker that waits for `GO`. Raises OSError, EOFError and
    ValueError."""
    from _socket import AF_UNIX, SOCK_STREAM, socket

    from qemuctl.command_server import wire

    numbers = _inherited()
    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        # A server whose queue is full refuses at once.
        connection.setblocking(False)
        connection.connect(path)
        deadline = monotonic() + _PATIENCE
        connection.settimeout(_PATIENCE)
        _check_owner(connection)
        wire.expect(connection, wire.HELLO)
        folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            wire.send(
                connection,
                [os.fsencode(word) for word in sys.argv],
                [name + b"=" + value for name, value in os.environb.items()],
                identity=identity(), umask=_umask(), ignored=_ignored(),
                numbers=numbers, encodings=_encodings(), fds=[folder, *numbers],
            )  # fmt: skip
        finally:
            os.close(folder)
        connection.settimeout(max(0.01, deadline - monotonic()))
        wire.expect(connection, wire.READY)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_owner(connection: socket) -> None:
    """Raises ValueError unless the server is of the same user (unix(7))."""
    from _socket import SO_PEERCRED, SOL_SOCKET

    credentials = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
    if int.from_bytes(credentials[4:8], sys.byteorder) != os.geteuid():
        raise ValueError


def _inherited() -> list[int]:
    """The descriptors that a program started here would have: the standard streams,
    and such as a shell's ``<(…)`` gives. Python's own are closed on exec."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:  # the one that listed them
            continue
    return sorted(found)


def _umask() -> int:
    """This process's umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _ignored() -> list[int]:
    """The signals that this process ignores by somebody else's wish."""
    ours = (_signal.SIGPIPE, _signal.SIGXFSZ)  # Python's own
    return [
        number
        for number in _signal.valid_signals()
        if number not in ours and _signal.getsignal(number) == _signal.SIG_IGN
    ]


def _encodings() -> list[str]:
    """How Python encodes the standard streams here, and whether it holds nothing back
    (python -u); ``-`` for one that is closed."""
    return [
        f"{one.encoding}:{one.errors}:{getattr(one, 'write_through', 0):d}"
        if one
        else "-"
        for one in (sys.stdin, sys.stdout, sys.stderr)
    ]


def _watch(connection: socket) -> NoReturn:
    """Begins the command, and sees to signals and its end."""
    from qemuctl.command_server import wire

    _forward(connection)
    try:
        connection.sendall(bytes([wire.GO]))
        while True:
            letter, number = wire.receive(connection)
            if letter == wire.BECOME:
                _become(wire.exactly(connection, number))
            if letter == wire.STATUS:
                _end(number)
    except (OSError, EOFError):
        # The worker's parent was killed, and the worker with it.
        _end(_signal.SIGKILL)


def _forward(connection: socket) -> None:
    """Passes signals on from now on."""

    def tell(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        try:
            connection.sendall(bytes([number]))
        except OSError:  # it has just ended
            return

    def stop(number: int, frame: FrameType | None) -> None:
        tell(number, frame)
        _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns when the process is continued
        _signal.signal(number, stop)
        # Also where there was no stop: nobody would continue this process.
        tell(_signal.SIGCONT, None)

    for number in _FORWARDED:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, tell)
    if _signal.getsignal(_signal.SIGTSTP) != _signal.SIG_IGN:
        _signal.signal(_signal.SIGTSTP, stop)


def _become(words: bytes) -> NoReturn:
    """Lets the program that the command has become take this process's place."""
    program, *argv = words.split(b"\0")
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    try:
        os.execv(program, argv)
    except OSError as error:
        os.write(2, f"error: {error.strerror}: {os.fsdecode(program)}\n".encode())
        os._exit(1)


def _end(status: int) -> NoReturn:
    """Ends this process as the worker has ended; the shell sees no difference."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        import resource

        # The worker has dumped core, where that is wanted.
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        if number != _signal.SIGKILL:
            _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
