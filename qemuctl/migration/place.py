"""Which home this is, for both sides to compare."""

from __future__ import annotations

from pathlib import Path

from qemuctl.paths import private_dir, vms_dir

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def host() -> str:
    """The running kernel."""
    return _BOOT.read_text().strip()


def place() -> str:
    """This home on this host: the same one by whatever path or way."""
    status = private_dir(vms_dir()).stat()
    return f"{host()}:{status.st_dev}:{status.st_ino}"
