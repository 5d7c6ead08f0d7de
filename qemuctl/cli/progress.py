"""How far something is, on a terminal; in a pipe nothing at all."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemuctl.image.progress import Progress


@contextlib.contextmanager
def transfer(text: str) -> Iterator[Progress]:
    """For a transfer in bytes: how much, how fast, how long it still takes."""
    if not sys.stderr.isatty():
        yield _silent
        return
    # Loading rich takes longer than most commands run.
    from rich import progress as rich

    columns = (
        rich.BarColumn(), rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(), rich.TimeRemainingColumn(),
    )  # fmt: skip
    with _bar(text, columns) as show:
        yield show


@contextlib.contextmanager
def percent(text: str) -> Iterator[Progress]:
    """For a job that tells hundredths of a percent, as qemu-img's do."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich import progress as rich

    columns = (
        rich.BarColumn(), rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(), rich.TimeRemainingColumn(),
    )  # fmt: skip
    with _bar(text, columns) as show:
        yield show


def _silent(_done: int, _total: int | None) -> None:
    """There is nobody to see it."""


@contextlib.contextmanager
def _bar(text: str, columns: tuple[Any, ...]) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn

    # No markup: the text holds the names of files.
    words = TextColumn("{task.description}", markup=False)
    console, above = Console(stderr=True), sys.stdout.isatty()
    with Bar(
        words, *columns, console=console, transient=True, redirect_stdout=above
    ) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
