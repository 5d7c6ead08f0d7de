"""One lock a VM, held by QEMU's own process tree for as long as it lives.

An open-file-description lock (fcntl(2), ``F_OFD_SETLK``) belongs to the open
file, which the shepherd and QEMU inherit: whoever of them is last alive holds
it, and the kernel lets go of it whatever killed them. ``F_OFD_GETLK`` asks
without taking, so a look never gets in the way of a start.

A command that works on a VM that is off has a lock of the first byte, and not of the
whole file: whoever meets it can tell the two apart, also on a full disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid


# How many bytes are locked; 0 is all that there ever will be.
_ALL, _WORK = 0, 1


def _flock(type_: int, length: int = _ALL) -> bytes:
    return struct.pack(_FLOCK, type_, os.SEEK_SET, 0, length, 0)


def take(path: Path, *, to_work: bool = False) -> int | None:
    """Takes the lock: its descriptor, or None when somebody else has it.

    ``to_work`` tells that it is for a command alone, and no VM. The caller closes the
    descriptor; the lock goes with its last copy.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock = _flock(fcntl.F_WRLCK, _WORK if to_work else _ALL)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return fd


def held(path: Path) -> bool:
    """Whether somebody holds the lock; asks only."""
    return _bytes_held(path) is not None


def runs(path: Path) -> bool:
    """Whether the processes of a VM hold the lock, and no command that works on it."""
    return _bytes_held(path) not in (None, _WORK)


def at_work(path: Path) -> bool:
    """Whether a command holds the lock that works on a VM, which is off."""
    return _bytes_held(path) == _WORK


def _bytes_held(path: Path) -> int | None:
    """How much of the file is locked; None where nothing is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        reply = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
        type_, _, _, length, _ = struct.unpack(_FLOCK, reply)
        return None if type_ == fcntl.F_UNLCK else int(length)
    finally:
        os.close(fd)
