"""Which home this is, for both sides to compare."""

from __future__ import annotations

from pathlib import Path

from qemuctl.home_id import made_id
from qemuctl.paths import private_dir, state_home, vms_dir

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def home_id() -> str:
    """What tells this home from all others, for good: made when it is first asked
    for."""
    return made_id(private_dir(state_home()))


def host() -> str:
    """The running kernel."""
    return _BOOT.read_text().strip()


def place() -> str:
    """This home on this host: the same one by whatever path or way."""
    status = private_dir(vms_dir()).stat()
    return f"{host()}:{status.st_dev}:{status.st_ino}"
