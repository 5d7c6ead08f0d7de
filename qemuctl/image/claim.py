"""One maker at a time: whoever else wants the same thing waits and then finds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from qemuctl.process.working import try_lock
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
        while (fd := try_lock(path, shared=shared)) is None:
            if waiting is not None:
                waiting()
            # The kernel tells nobody when a lock is free, but for a thread that sleeps
            # in flock(2), and that one could not be interrupted.
            await asyncio.sleep(LOOK_EVERY)
    try:
        yield
    finally:
        os.close(fd)
