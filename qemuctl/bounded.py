"""Logs with a bound, whose old part is given back while somebody writes.

Who writes goes on at the offset it has, and who reads has a place in the file: so a
log is neither shortened nor renamed. A hole takes the place of its older half
(fallocate(2)); offsets stay what they were, and the file takes the room of what is
left. QEMU's own logs are trimmed by its shepherd, for Python may not be there.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

LIMIT = 4 * 1024 * 1024
_BLOCK = 4096
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def start(path: Path) -> int:
    """Where the file's content begins, in bytes; not 0 once it was trimmed. Raises
    OSError."""
    with path.open("rb") as file:
        return begin(file.fileno(), 0)


def begin(fd: int, offset: int) -> int:
    """Where content begins in an open file at ``offset`` or behind it; ``offset`` where
    there is none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError:  # there is no data, or nobody knows of holes
        return offset


def content(path: Path) -> bytes:
    """What is left in a log. Raises OSError."""
    with path.open("rb") as file:
        file.seek(begin(file.fileno(), 0))
        return file.read()


def trim(path: Path, most: int = LIMIT) -> None:
    """Gives the room of the older part back when the file takes more than ``most``
    bytes; half as much stays. It does nothing where there is no file, or its file
    system has no holes."""
    try:
        with path.open("r+b") as file:
            status = os.fstat(file.fileno())
            if status.st_blocks * 512 <= most:
                return
            length = (status.st_size - most // 2) // _BLOCK * _BLOCK
            ctypes.CDLL(None).fallocate(
                file.fileno(), _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(length)
            )
    except OSError:
        return
