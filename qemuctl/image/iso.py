"""CD images: only what tells them from other files."""

from __future__ import annotations

import stat
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.image.qemu_img import check_readable

# ECMA-119 and ECMA-167: the first volume descriptor, in sector 16.
_DESCRIPTOR = 16 * 2048 + 1
_NAMES = (b"CD001", b"BEA01")


def check_iso(path: Path) -> None:
    """Raises ImageError unless the file is a CD or DVD image, or a drive."""
    if path.is_fifo():  # to open it would be to wait
        raise ImageError(f"not a file: {path}")
    check_readable(path, "the CD image")
    if stat.S_ISBLK(path.stat().st_mode):
        return
    with path.open("rb") as file:
        file.seek(_DESCRIPTOR)
        if file.read(5) not in _NAMES:
            raise ImageError(
                f"not a CD image: {path}",
                hint="a disk image belongs to the disks: --disk path=…,format=…",
            )
