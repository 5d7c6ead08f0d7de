"""Which home this is, for both sides to compare."""

from __future__ import annotations

import secrets
import shlex
from pathlib import Path

from qemuctl import durable
from qemuctl.errors import ImageError
from qemuctl.image.whole import whole
from qemuctl.paths import private_dir, state_home, vms_dir

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def home_id() -> str:
    """What tells this home from all others, for good: made when it is first asked
    for."""
    path = private_dir(state_home()) / "id"
    if not path.exists():
        try:
            with whole(path) as fresh:
                fresh.write_text(f"{secrets.token_hex(16)}\n")
        except ImageError:
            if not path.exists():  # else another command was quicker
                raise
    hint = "migrations that were cut short are not recovered without it; to make "
    with durable.understood(path, f"{hint}another one: rm {shlex.quote(str(path))}"):
        (known,) = path.read_text(encoding="utf-8").split()
        return known


def host() -> str:
    """The running kernel."""
    return _BOOT.read_text().strip()


def place() -> str:
    """This home on this host: the same one by whatever path or way."""
    status = private_dir(vms_dir()).stat()
    return f"{host()}:{status.st_dev}:{status.st_ino}"
