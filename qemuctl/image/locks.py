"""Who else has an image open, asked of the kernel: QEMU's own locks on image files.

block/file-posix.c holds a shared open file description lock on one byte for each
thing that it does with a file, and on one for each that nobody else may do. That
qemu-img refuses to read what a VM writes is true for qcow2 only: its raw driver
lets others write, so that a copy of a running VM's raw disk would be no one state.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qemuctl.errors import ImageInUse
from qemuctl.image.qcow2 import open_image

# RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, 64 bits of permissions each.
_DONE, _REFUSED, _PERMISSIONS = 100, 200, 64
_WRITE = 1  # the bit of BLK_PERM_WRITE
_ALL = [(_DONE, _PERMISSIONS), (_REFUSED, _PERMISSIONS)]
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

# struct flock of fcntl(2): type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def check_unwritten(path: Path) -> None:
    """Raises ImageInUse while another process may write to a file."""
    _check(path, [(_DONE + _WRITE, 1)])


def check_unused(path: Path) -> None:
    """Raises ImageInUse while QEMU has a file open at all, also to read from it."""
    _check(path, _ALL)


@contextlib.contextmanager
def unshared(path: Path) -> Iterator[None]:
    """Keeps every QEMU from opening a file for the block, to read or to write.

    Raises ImageInUse while QEMU has it open at all, or another such block.
    """
    with open_image(path) as file:
        # First the locks, then the look, as QEMU does it: of two that begin at the
        # same time each may give up, but never go both on.
        _refuse(file, path)
        _check_open(file, path, _ALL)
        yield


def _refuse(file: BinaryIO, path: Path) -> None:
    # A shared lock needs no permission to write, and others can tell it as well.
    wanted = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _REFUSED, _PERMISSIONS, 0)
    try:
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError) as error:
        raise ImageInUse(path) from error
    except OSError as error:
        # A file system that has no locks: QEMU does without them there, too.
        if error.errno not in _NO_LOCKS:
            raise


def _check(path: Path, ranges: list[tuple[int, int]]) -> None:
    with open_image(path) as file:
        _check_open(file, path, ranges)


def _check_open(file: BinaryIO, path: Path, ranges: list[tuple[int, int]]) -> None:
    for start, length in ranges:
        # Asks whether an exclusive lock could be had; takes none.
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        try:
            found = fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, wanted)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise
        if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
            raise ImageInUse(path)
