"""How far a long action is, told to whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable

# Gets what is done and of how much: bytes, or for qemu-img's jobs hundredths of
# a percent (of `WHOLE`). What it is of may not be known: None.
Progress = Callable[[int, int | None], None]
WHOLE = 10_000


def silent(_done: int, _total: int | None) -> None:
    """Shows nothing."""
