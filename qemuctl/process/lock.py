"""One lock a VM, held by QEMU's own process tree for as long as it lives.

An open-file-description lock (fcntl(2), ``F_OFD_SETLK``) belongs to the open
file, which the shepherd and QEMU inherit: whoever of them is last alive holds
it, and the kernel lets go of it whatever killed them. ``F_OFD_GETLK`` asks
without taking, so a look never gets in the way of a start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid


def _flock(type_: int) -> bytes:
    return struct.pack(_FLOCK, type_, os.SEEK_SET, 0, 0, 0)


def take(path: Path) -> int | None:
    """Takes the lock: its descriptor, or None when somebody else has it.

    The caller closes the descriptor; the lock goes with its last copy.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return fd


def held(path: Path) -> bool:
    """Whether somebody holds the lock; asks only."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        reply = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
        return bool(struct.unpack(_FLOCK, reply)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)
