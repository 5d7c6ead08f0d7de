"""Who makes a template, and who is just starting from it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from qemuctl.image.claim import claimed, claimed_now


def _lock(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


@contextlib.asynccontextmanager
async def in_use(folder: Path) -> AsyncIterator[None]:
    """For the block, which is a fork's start, the template's files stay."""
    async with claimed(_lock(folder), shared=True):
        yield


@contextlib.asynccontextmanager
async def alone(
    folder: Path, waiting: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    """For the block nobody else makes, removes or uses the template; ``waiting`` is
    called now and then before."""
    async with claimed(_lock(folder), waiting):
        yield


@contextlib.contextmanager
def free(folder: Path) -> Iterator[bool]:
    """Whether nobody makes, removes or starts from the template, for the block."""
    with claimed_now(_lock(folder)) as nobody:
        yield nobody
