"""Who else has an image open, asked of the kernel: QEMU's own locks on image files.

block/file-posix.c holds a shared open file description lock on one byte for each
thing that it does with a file, and on one for each that nobody else may do. That
qemu-img refuses to read what a VM writes is true for qcow2 only: its raw driver
lets others write, so that a copy of a running VM's raw disk would be no one state.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from qemuctl.errors import ImageInUse
from qemuctl.image.qcow2 import open_image

# RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, 64 bits of permissions each.
_DONE, _REFUSED, _PERMISSIONS = 100, 200, 64
_WRITE = 1  # the bit of BLK_PERM_WRITE

# struct flock of fcntl(2): type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def check_unwritten(path: Path) -> None:
    """Raises ImageInUse while another process may write to a file."""
    _check(path, [(_DONE + _WRITE, 1)])


def check_unused(path: Path) -> None:
    """Raises ImageInUse while QEMU has a file open at all, also to read from it."""
    _check(path, [(_DONE, _PERMISSIONS), (_REFUSED, _PERMISSIONS)])


def _check(path: Path, ranges: list[tuple[int, int]]) -> None:
    with open_image(path) as file:
        for start, length in ranges:
            # Asks whether an exclusive lock could be had; takes none.
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            found = fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, wanted)
            if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
                raise ImageInUse(path)
