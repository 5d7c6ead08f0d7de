"""Starting, finding and ending the server of a user."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from qemuctl.command_server.identity import address
from qemuctl.command_server.parent import client_of
from qemuctl.command_server.user import READY
from qemuctl.errors import HostError
from qemuctl.folders import private_dir
from qemuctl.run_base import run_base
from qemuctl.waiting import lock_for_a_moment

_PATIENCE = 1.0  # seconds, for a server to accept
_END_PATIENCE = 5.0
# With the package found where it is found here, and nothing from the folder it is in.
_FOUND = "import sys; sys.path[:1] = [sys.argv.pop(1)]\n"


def running() -> int | None:
    """The pid of this user's server of this installation; None when there is none."""
    with contextlib.suppress(OSError), _connected() as connection:
        pid, uid = client_of(connection)
        return pid if uid == os.geteuid() else None
    return None


def answers() -> bool:
    """Whether it serves: one that is stopped (SIGSTOP) does not."""
    with contextlib.suppress(OSError), _connected() as connection:
        return bool(connection.recv(1))
    return False


@contextlib.contextmanager
def _connected() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(address())
        yield connection


def start(program: str) -> tuple[int, bool]:
    """Starts the server unless there is one; its pid, and whether it is new.

    ``program`` is Python that ends in a call of `user.serve`.

    Raises:
        HostError: it cannot be started, or there is one that does not answer.
    """
    with _locked():
        if (there := running()) is not None:
            if answers():
                return there, False
            # One whose code has changed on disk ends when it is asked.
            if not _gone(there, _PATIENCE):
                raise HostError(
                    f"the command server does not answer: process {there}",
                    hint="qemuctl server stop",
                )
        return _started(program), True


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """For the block, nobody else starts or ends the server. Its lock is a file, which
    is there for so long only."""
    path = Path(address())
    if path.parent == Path(run_base()):
        private_dir(path.parent)
    path = path.with_name(f"{path.name}.lock")
    while True:
        with path.open("w") as lock:
            lock_for_a_moment(lock.fileno(), str(path))
            if not _is_at(path, lock.fileno()):  # its last holder has removed it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _gone(pid: int, patience: float | None) -> bool:
    """Whether a process ends within so many seconds."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            return bool(select.select([pidfd], [], [], patience)[0])
        finally:
            os.close(pidfd)
    return True


def _started(program: str) -> int:
    # The same of -E, -P and so on as here: identity.py compares them.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", _FOUND + program, str(root)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as said:
        words = said.read()
    if not words.endswith(READY):
        process.wait()
        # The last line of a traceback.
        *_, reason = words.decode(errors="replace").splitlines() or ["it said nothing"]
        raise HostError(f"the command server has ended: {reason}")
    # A long-lived caller would otherwise keep it as a zombie after its end.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


def stop() -> bool:
    """Ends the server; False when there is none. Commands that run go on.

    SIGTERM, and SIGKILL when that has no effect.
    """
    if running() is None:
        return False
    with _locked():
        if (pid := running()) is not None:
            _end(pid)
            Path(address()).unlink(missing_ok=True)
    return True


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
        if not _gone(pid, _END_PATIENCE):
            os.kill(pid, signal.SIGKILL)
            _gone(pid, None)
