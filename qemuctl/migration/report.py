"""What a migration tells while it goes on, and what it came to."""

from __future__ import annotations

from collections.abc import Callable

from qemuctl.migration.phases import Phase
from qemuctl.qmp.migration import MigrationInfo, RamStats
from qemuctl.structs import Struct


class Progress(Struct):
    """How far a migration is: bytes, bytes a second, and seconds.

    ``dirty_rate`` is how much of its memory the guest changes, ``iterations`` how
    often it was gone through, ``expected_downtime`` what QEMU expects by now;
    ``throttle`` is how many hundredths of its time the guest is held back.
    """

    phase: Phase
    ram_transferred: int = 0
    ram_remaining: int = 0
    ram_total: int = 0
    rate: int = 0
    dirty_rate: int = 0
    iterations: int = 0
    expected_downtime: float | None = None
    throttle: int = 0
    storage_done: int = 0
    storage_total: int = 0
    note: str | None = None


def progress_of(
    phase: Phase, info: MigrationInfo, storage_done: int, storage_total: int
) -> Progress:
    """What QEMU tells, in bytes and seconds."""
    ram, expected = info.ram or RamStats(), info.expected_downtime
    return Progress(
        phase=phase,
        ram_transferred=ram.transferred,
        ram_remaining=ram.remaining,
        ram_total=ram.total,
        rate=round(ram.mbps * 1e6 / 8),
        dirty_rate=ram.dirty_pages_rate * ram.page_size,
        iterations=ram.dirty_sync_count,
        expected_downtime=expected / 1000 if expected is not None else None,
        throttle=info.cpu_throttle_percentage or 0,
        storage_done=storage_done,
        storage_total=storage_total,
    )


Report = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Tells nobody."""


class Moved(Struct):
    """A VM that runs elsewhere now.

    ``downtime`` is what QEMU counted, and how long we had stopped the guest before
    that, ``guest_downtime`` by how much the guest's own
    clock fell behind, None where no agent told; both in seconds. ``notes`` are what
    did not come along.
    """

    name: str
    destination: str
    total_seconds: float
    downtime: float | None
    guest_downtime: float | None
    ram_bytes: int
    storage_bytes: int
    kept: bool
    notes: tuple[str, ...] = ()
