"""Starting QEMU below its shepherd, and waiting for the end of both."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemuctl.descriptors import readable
from qemuctl.errors import HostError, LaunchError
from qemuctl.paths import VmPaths, private_dir
from qemuctl.process.gone import wait_gone
from qemuctl.process.identity import Identity

_HERE = Path(__file__).parent
# A listening socket queues this many clients that wait for their turn.
_BACKLOG = 64
# The shepherd needs descriptors of one digit for itself.
_LOWEST_FD = 10


@dataclass
class Child:
    """A QEMU that this process owns, until it is detached or reaped.

    Most were started by it; one that another process handed over has no ``_popen``.
    """

    qemu: Identity
    shepherd: Identity
    _popen: subprocess.Popen[bytes] | None
    _pipe: int
    _listeners: list[socket.socket]

    @classmethod
    def received(cls, qemu: Identity, shepherd: Identity, pipe: int) -> Child:
        """One that another process started and handed over, with its ``pipe``."""
        return cls(qemu, shepherd, None, pipe, [])

    @property
    def pipe(self) -> int:
        """The descriptor that owns it: QEMU dies with its last copy."""
        return self._pipe

    def greeted(self) -> None:
        """To be called once QEMU has greeted: makes the sockets' queues long.

        QEMU calls listen(2) on what it inherits, for one waiting client; the
        queue belongs to the socket, so we can make it long again. (A unix
        socket whose queue is full refuses, and asyncio takes that for a
        connection in progress.)
        """
        for listener in self._listeners:
            listener.listen(_BACKLOG)
        self._close_listeners()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def detach(self) -> None:
        """Lets go: from now on QEMU outlives this process."""
        os.write(self._pipe, b"detach\n")
        os.close(self._pipe)
        self._pipe = -1
        if self._popen is not None:
            # A long-lived owner would otherwise keep the shepherd as a zombie.
            threading.Thread(target=self._popen.wait, daemon=True).start()

    def disown(self) -> None:
        """Closes the pipe: if QEMU still runs, its shepherd kills it now, unless
        the pipe was handed to another process."""
        self._close_listeners()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    async def reaped(self) -> None:
        """Waits until the shepherd has ended, which comes after QEMU's end."""
        await wait_gone(self.shepherd)
        if self._popen is not None:
            self._popen.wait()


def listen(paths: Sequence[Path]) -> dict[Path, socket.socket]:
    """Binds and listens on unix sockets, mode 0600, for QEMU to inherit.

    With the socket listening before QEMU exists, a client connects at once
    and gets the greeting the moment QEMU is ready: nothing needs to poll.
    """
    sockets: dict[Path, socket.socket] = {}
    try:
        for path in paths:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sockets[path] = listener
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
            listener.listen(_BACKLOG)
    except OSError as error:
        for opened in sockets.values():
            opened.close()
        raise HostError(
            f"cannot listen on {path}: {error.strerror or error}"
        ) from error
    return sockets


async def spawn(
    paths: VmPaths,
    listening: Sequence[Path],
    argv: Callable[[dict[Path, int]], list[str]],
    *,
    keep_open: Sequence[int] = (),
) -> Child:
    """Starts QEMU below a shepherd, in a session of its own.

    ``listening`` are the sockets to hand over; ``argv`` gets their
    descriptors and gives QEMU's argument list. ``keep_open`` are further
    descriptors to inherit: the lock, the undertaker's pipe.

    Raises LaunchError when the process cannot be made at all. QEMU's own
    failure shows later, as its end.
    """
    private_dir(paths.run)
    sockets = listen(listening)
    ours, theirs, kept = -1, -1, []
    try:
        for fd in [*(sock.fileno() for sock in sockets.values()), *keep_open]:
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
            kept.append(high)  # one by one: each is closed whatever comes next
        line = argv(dict(zip(sockets, kept, strict=False)))
        launch = paths.run / "launch.sh"
        launch.write_bytes(os.fsencode(f"set -- {shlex.join(line)}\n"))
        theirs, ours = os.pipe()
        with paths.qemu_log.open("wb") as log:
            popen = subprocess.Popen(
                ["/bin/sh", _HERE / "shepherd.sh", paths.state, paths.run],
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=kept,
            )
    except OSError as error:
        if ours >= 0:
            os.close(ours)
        for sock in sockets.values():
            sock.close()
        raise LaunchError(f"cannot start QEMU: {error}") from error
    finally:
        if theirs >= 0:
            os.close(theirs)
        for fd in kept:
            os.close(fd)
    return await _hatch(popen, ours, list(sockets.values()))


async def _hatch(
    popen: subprocess.Popen[bytes], pipe: int, listeners: list[socket.socket]
) -> Child:
    """The child, once its shepherd has told QEMU's pid."""
    assert popen.stdout is not None
    try:
        with popen.stdout as stdout:
            await readable(stdout.fileno())
            pid = int(stdout.readline() or 0)
        shepherd = Identity.of(popen.pid)
        # A QEMU that ended already is known by its pid alone, and never alive.
        qemu = Identity.of(pid) or Identity(pid, -1, "")
        shepherd = shepherd or Identity(popen.pid, -1, "")
        return Child(qemu, shepherd, popen, pipe, listeners)
    except BaseException:
        for listener in listeners:
            listener.close()
        os.close(pipe)
        popen.wait()
        raise


@dataclass
class Undertaker:
    """The process that removes a throwaway VM's files at the end.

    ``pipe`` is what it watches: `spawn` hands it to the others. One that another
    process started has no ``_popen``.
    """

    pipe: int
    process: Identity
    _popen: subprocess.Popen[bytes] | None = None

    def made(self) -> None:
        """The first folder is the VM's: from now on all that is in it goes."""
        os.write(self.pipe, b"made\n")

    def detach(self) -> None:
        """Lets go of the pipe without waiting: the files go when QEMU does."""
        self.let_go()
        if self._popen is not None:
            # A long-lived owner would otherwise keep it as a zombie.
            threading.Thread(target=self._popen.wait, daemon=True).start()

    async def dismiss(self) -> None:
        """Ends it before it has removed anything."""
        self.process.signal(signal.SIGKILL)
        await self.done()

    async def done(self) -> None:
        """Lets go of the pipe and waits until the files are gone."""
        self.let_go()
        await self.reaped()

    def let_go(self) -> None:
        """Closes the pipe; others may have it still."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    async def reaped(self) -> None:
        """Waits until the files are gone."""
        await wait_gone(self.process)
        if self._popen is not None:
            self._popen.wait()


def bury(*folders: Path) -> Undertaker:
    """Starts the undertaker of a throwaway VM, before any of its files exist.

    The first folder is to be made next, and its undertaker told: `Undertaker.made`.
    """
    theirs, ours = os.pipe()
    try:
        popen = subprocess.Popen(
            ["/bin/sh", _HERE / "undertaker.sh", *folders],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    process = Identity.of(popen.pid) or Identity(popen.pid, -1, "")
    return Undertaker(ours, process, popen)
