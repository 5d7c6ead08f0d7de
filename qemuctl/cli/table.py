"""The table of `top`: live on a terminal, one after the other in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from qemuctl.cli.numbers import percent, size
from qemuctl.cli.output import print_table

if TYPE_CHECKING:
    from rich.live import Live

    from qemuctl.stats.all_vms import Row

HEAD = (
    "NAME", "STATE", "CPU", "HOST", "VCPU%", "MEMORY", "GUEST", "RES", "PSS",
    "READ/s", "WRITE/s", "OPS/s", "RX/s", "TX/s",
)  # fmt: skip
_VCPUS_SHOWN = 4
_WORDS = 2  # columns that are not numbers
_DISPENSABLE = ("VCPU%", "HOST", "PSS", "OPS/s", "MEMORY", "GUEST", "TX/s", "RX/s")


class Tables:
    """Where tables go; as a context it holds the terminal."""

    def __init__(self, *, live: bool) -> None:
        self._is_live = live
        self._live: Live | None = None
        self._stack = ExitStack()
        self._printed = False

    def __enter__(self) -> Self:
        if self._is_live:
            from rich.live import Live

            self._live = self._stack.enter_context(Live(auto_refresh=False))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def show(self, rows: Sequence[Row]) -> None:
        """Shows one sample of all VMs, the busiest first."""
        cells = [_cells(row) for row in sorted(rows, key=_busy)]
        if self._live is not None:
            self._live.update(self._drawn(cells), refresh=True)
            return
        if self._printed:
            print()
        print_table(HEAD, cells)
        sys.stdout.flush()
        self._printed = True

    def _drawn(self, cells: list[list[str | None]]) -> Any:
        from rich.table import Table

        assert self._live is not None
        # What does not fit would be laid out in vain, every second.
        room = max(1, self._live.console.height - 3)
        shown = fitting(cells[:room], self._live.console.width)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number in shown:
            justify: Any = "left" if number < _WORDS else "right"
            table.add_column(HEAD[number], justify=justify, no_wrap=True)
        for row in cells[:room]:
            table.add_row(*(row[number] or "-" for number in shown))
        if len(cells) > room:
            table.caption = f"and {len(cells) - room} more"
        elif not cells:
            table.caption = "no VM is on"
        return table


def fitting(cells: Sequence[Sequence[str | None]], width: int) -> list[int]:
    """The numbers of the columns for a terminal, the less important ones left out
    where it is narrow."""
    rows = [HEAD, *([cell or "-" for cell in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = list(range(len(HEAD)))
    for name in _DISPENSABLE:
        if sum(widths[number] + 2 for number in shown) - 2 <= width:
            break
        shown.remove(HEAD.index(name))
    return shown


def _busy(row: Row) -> tuple[float, str]:
    return (-row.rates.cpu_share if row.rates else 0.0, row.sample.name)


def _cells(row: Row) -> list[str | None]:
    sample, rates = row.sample, row.rates
    memory = sample.memory
    disks, nics = (rates.disks, rates.nics) if rates else (None, None)
    operations = _sum(
        disks, "read_operations_per_second", "write_operations_per_second"
    )
    return [
        sample.name,
        sample.state,
        percent(rates.cpu_share) if rates else None,
        percent(rates.host_share) if rates else None,
        processors([x.cpu_share * 100 for x in rates.vcpus]) if rates else None,
        size(memory.actual_bytes),
        size(memory.guest.used_bytes) if memory.guest else None,
        size(memory.resident_bytes),
        size(memory.proportional_bytes),
        size(_sum(disks, "read_bytes_per_second")),
        size(_sum(disks, "written_bytes_per_second")),
        None if operations is None else f"{operations:.0f}",
        size(_sum(nics, "received_bytes_per_second")),
        size(_sum(nics, "sent_bytes_per_second")),
    ]


def processors(shares: Sequence[float]) -> str:
    """How busy each processor is; of many, how many there are and the busiest."""
    if len(shares) > _VCPUS_SHOWN:
        return f"{max(shares):.0f} at most of {len(shares)}"
    return " ".join(f"{share:.0f}" for share in shares)


def _sum(devices: Sequence[Any] | None, *names: str) -> float | None:
    if devices is None:
        return None
    return float(sum(getattr(device, name) for device in devices for name in names))
