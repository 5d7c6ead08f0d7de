"""The key pair by which qemuctl itself gets into guests.

One pair for all VMs of a user. The private half stays in the user's own data
folder; the public half goes into the seed of every VM that has one.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from qemuctl import durable
from qemuctl.errors import HostError
from qemuctl.paths import data_home, has_name, private_dir
from qemuctl.structs import Struct
from qemuctl.waiting import lock_for_a_moment

_NAME = "id_ed25519"


class KeyPair(Struct, kw_only=False):
    """The file of the private key, and the public one as text."""

    private: Path
    public: str


def own_key() -> KeyPair:
    """The pair, made by ssh-keygen(1) when it is first needed.

    Of two that need it at once one makes it. Its modes are mended, a lost
    public half is computed again, and a private half is never replaced.
    Raises HostError when there is no ssh-keygen, or when it refuses the key.
    """
    folder = private_dir(data_home() / "ssh")
    private, public = folder / _NAME, folder / f"{_NAME}.pub"
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_for_a_moment(fd, str(folder / ".lock"))
        if not private.exists():
            _make(folder)
        if private.stat().st_mode & 0o777 != 0o600:
            private.chmod(0o600)  # ssh refuses a key that others can read
        text = _read(public)
        if text is None:
            text = _keygen("-y", "-P", "", "-f", str(private)).strip()
            durable.write(public, f"{text}\n")
        return KeyPair(private, text)
    except OSError as error:
        raise HostError(
            f"the key pair cannot be used: {folder}: {error.strerror}"
        ) from error
    finally:
        os.close(fd)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as fresh:
        made = Path(fresh, _NAME)
        _keygen("-q", "-t", "ed25519", "-N", "", "-C", "qemuctl", "-f", str(made))
        durable.sync_tree(Path(fresh))
        # The private half last: without it the pair counts as not made.
        durable.move(made.with_suffix(".pub"), folder / f"{_NAME}.pub")
        durable.move(made, folder / _NAME)


def _read(public: Path) -> str | None:
    try:
        text = public.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    whole = text.startswith("ssh-ed25519 ") and len(text.splitlines()) == 1
    return text if whole and len(text.split()[1]) == 68 else None


def check_user() -> None:
    """Raises HostError for a user with whom ssh and ssh-keygen refuse to work."""
    if not has_name():
        raise HostError(
            f"ssh needs a user with a name, and the id {os.getuid()} has none",
            hint="qemuctl exec and cp do without; or add the id to /etc/passwd",
        )


def _keygen(*arguments: str) -> str:
    check_user()
    argv = ["ssh-keygen", *arguments]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError as error:
        raise HostError(
            "there is no ssh-keygen on PATH", hint="install openssh-client"
        ) from error
    if done.returncode:
        raise HostError(f"ssh-keygen failed: {done.stderr.strip() or done.stdout}")
    return done.stdout
