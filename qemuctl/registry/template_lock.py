"""Who makes a template, and who is just starting from it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from qemuctl.image.claim import claimed
from qemuctl.process.working import free_now


def lock_of(folder: Path) -> Path:
    """The lock file of a template's folder, beside it."""
    return folder.parent / f".{folder.name}.lock"


@contextlib.asynccontextmanager
async def in_use(folder: Path) -> AsyncIterator[None]:
    """For the block, which is a fork's start, the template's files stay."""
    async with claimed(lock_of(folder), shared=True):
        yield


@contextlib.asynccontextmanager
async def alone(
    folder: Path, waiting: Callable[[], None] | None = None
) -> AsyncIterator[None]:
    """For the block nobody else makes, removes or uses the template; ``waiting`` is
    called now and then before."""
    async with claimed(lock_of(folder), waiting):
        yield


@contextlib.contextmanager
def alone_now(folder: Path) -> Iterator[bool]:
    """As `alone`, without waiting: says whether that is so."""
    with free_now(lock_of(folder)) as taken:
        yield taken
