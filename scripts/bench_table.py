"""What a benchmark's table is made of: samples of two sides, and their ratio."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

_WIDTH = 140
# Where much else runs, Linux shares the processors among sessions first (autogroup,
# sched(7)): bare QEMUs have one of their own, as ours do.
ALONE = True
Measure = Callable[[], float]


@dataclass
class Row:
    """One line of the table: samples of both sides, in ``unit``.

    ``target`` is the most that ours may be: a ratio to bare, or, where
    ``absolute`` says so, a value in ``unit``. ``beside`` are further sides, by their
    names; such rows have a table of their own.
    """

    name: str
    unit: str
    ours: list[float]
    bare: list[float] = field(default_factory=list)
    target: float | None = None
    absolute: bool = False
    beside: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return median(self.ours) / median(self.bare) if self.bare else None


def compare(
    name: str, ours: Measure, bare: Measure, runs: int, target: float | None = None
) -> Row:
    """Seconds of both, after one of each that only warms the caches."""
    ours(), bare()
    pairs = [(ours(), bare()) for _ in range(runs)]
    return Row(name, "s", [a for a, _ in pairs], [b for _, b in pairs], target)


def timed(argv: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - started


def show(rows: list[Row]) -> None:
    plain = [row for row in rows if not row.beside]
    if plain:
        _show_pairs(plain)
    if len(plain) < len(rows):
        _show_sides([row for row in rows if row.beside])


def _table(*columns: str) -> Table:
    table = Table(*columns)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _print(table: Table) -> None:
    # In a pipe nobody says how wide it may be.
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def _show_sides(rows: list[Row]) -> None:
    """Each side beside ours; the ratios of ours and of the sides to the last one."""
    *sides, last = rows[0].beside
    ratios = [f"{side} / {last}" for side in ("ours", *sides)]
    table = _table("", "ours", "/ bare", "at most", *sides, last, *ratios)
    for row in rows:
        every = {name: median(x) if x else None for name, x in row.beside.items()}
        ours, by = median(row.ours), every[last]
        table.add_row(
            row.name,
            amount(ours, row.unit),
            ratio(ours, median(row.bare) if row.bare else None),
            f"{row.target:g}" if row.target else "-",
            *(amount(x, row.unit) if x else "-" for x in every.values()),
            *(ratio(x, by) for x in (ours, *(every[side] for side in sides))),
        )
    _print(table)


def ratio(value: float | None, by: float | None) -> str:
    return f"{value / by:.2f}" if value and by else "-"


def _show_pairs(rows: list[Row]) -> None:
    table = _table("ours / bare", "ours", "bare", "ratio", "at most")
    for row in rows:
        target = f"{row.target:g}" if row.target else "-"
        table.add_row(
            row.name,
            amount(median(row.ours), row.unit),
            amount(median(row.bare), row.unit) if row.bare else "-",
            f"{row.ratio:.3f}" if row.ratio else "-",
            f"{target} {row.unit}" if row.target and row.absolute else target,
        )
    _print(table)


def amount(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.1f} {unit}"
    return f"{value:.3f} s" if value >= 0.1 else f"{value * 1000:.3f} ms"
