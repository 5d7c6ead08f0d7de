"""Starting, finding and ending the server of a user."""

from __future__ import annotations

import contextlib
import fcntl
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
        HostError: it cannot be started.
    """
    path = Path(address())
    private_dir(path.parent)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (there := running()) is not None:
            return there, False
        return _started(program), True


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
        text = words.decode(errors="replace").strip()
        raise HostError(f"the command server has ended: {text or 'it said nothing'}")
    # A long-lived caller would otherwise keep it as a zombie after its end.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


def stop() -> bool:
    """Ends the server; False when there is none. Commands that run go on.

    SIGTERM, and SIGKILL when that has no effect.
    """
    pid = running()
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            for number in (signal.SIGTERM, signal.SIGCONT):
                signal.pidfd_send_signal(pidfd, number)
            if not select.select([pidfd], [], [], _END_PATIENCE)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [])
        finally:
            os.close(pidfd)
    Path(address()).unlink(missing_ok=True)
    return True
