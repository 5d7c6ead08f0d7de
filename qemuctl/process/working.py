"""Who is at work on a file or in a folder, told by locks of the kernel (flock(2)).

A pid would not tell: it may be another process's by now, or one of another pid
namespace. A lock is seen wherever the file is, and goes with its holder, whatever ends
that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from qemuctl.waiting import lock_for_a_moment

_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_THERE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def try_lock(path: Path, *, shared: bool = False, flags: int = _FILE) -> int | None:
    """The lock of a file, which is made where there is none: its descriptor, or None
    while somebody else has it. Raises OSError."""
    fd = os.open(path, flags, 0o600)
    taken = False
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        # Its last holder may have removed or renamed what we opened.
        taken = os.path.samestat(os.fstat(fd), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return None
    finally:
        if not taken:
            os.close(fd)
    return fd if taken else None


@contextlib.contextmanager
def free_now(path: Path) -> Iterator[bool]:
    """Says whether nobody has the lock of a file, which the block then has."""
    with _closing(try_lock(path)) as free:
        yield free


@contextlib.contextmanager
def idle(path: Path) -> Iterator[bool]:
    """Says whether nobody is at work in a folder, or has the lock of a file; that stays
    so for the block. Of what is gone it says no."""
    fd = None
    with contextlib.suppress(OSError):  # or its file system has no locks
        fd = try_lock(path, flags=_THERE)
    with _closing(fd) as free:
        yield free


def all_idle(folders: Iterable[Path]) -> list[Path]:
    """Those of some folders in which nobody is at work just now."""
    found = []
    for folder in folders:
        with idle(folder) as free:
            found += [folder] if free else []
    return found


@contextlib.contextmanager
def making(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder for the block; others see that somebody is at work there (`idle`).

    The block may rename it to what it is to be; else it is removed at the end.
    """
    fd = None
    while fd is None:  # `gc` may take a new one for one that was left
        folder = parent / f"{prefix}{os.urandom(4).hex()}"
        folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            fd = try_lock(folder, flags=_THERE)
    with _closing(fd):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def working(folder: Path) -> Iterator[None]:
    """Waits until nobody is at work in a folder, and is that for the block. Raises as
    `lock_for_a_moment`."""
    fd = os.open(folder, _THERE)
    with _closing(fd):
        lock_for_a_moment(fd, str(folder))
        yield


@contextlib.contextmanager
def _closing(fd: int | None) -> Iterator[bool]:
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)
