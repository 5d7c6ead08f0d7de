"""One maker at a time: whoever else wants the same thing waits and then finds it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from qemuctl.waiting import waiting_for

LOOK_EVERY = 0.1


@contextlib.asynccontextmanager
async def claimed(
    path: Path, waiting: Callable[[], None] | None = None, *, shared: bool = False
) -> AsyncIterator[None]:
    """Holds the lock file ``path`` (flock(2)) for the block.

    Tasks and processes exclude each other, but for those that share it; ``waiting``
    is called now and then while another has it, and without it people are told. The
    kernel lets go of it whatever kills its holder. The file stays, but its holder may
    remove it.
    """
    with contextlib.ExitStack() as stack:
        if waiting is None:
            words = waiting_for(f"another command that has locked {path}")
            stack.enter_context(words)
        while (fd := _try(path, shared=shared)) is None:
            if waiting is not None:
                waiting()
            # The kernel tells nobody when a lock is free, but for a thread that sleeps
            # in flock(2), and that one could not be interrupted.
            await asyncio.sleep(LOOK_EVERY)
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def claimed_now(path: Path) -> Iterator[bool]:
    """As `claimed`, without waiting: says whether the block has the lock."""
    fd = _try(path)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _try(path: Path, *, shared: bool = False) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    taken = False
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        # Its last holder may have removed the file that we opened.
        taken = os.path.samestat(os.fstat(fd), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return None
    finally:
        if not taken:
            os.close(fd)
    return fd if taken else None
