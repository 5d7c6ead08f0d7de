"""What the memory facet gives back."""

from __future__ import annotations

from qemuctl.hotplug.balloon_stats import GuestMemory
from qemuctl.hotplug.memory.choose import Choice, MemoryNow, Way
from qemuctl.structs import Struct


class BalloonReport(Struct):
    """The balloon: what the guest was asked to keep, and what it has.

    ``requested_bytes`` is all of ``total_bytes`` where nobody has asked.
    ``has_driver`` tells whether the guest can hear of it. ``guest`` is what its
    driver says of its memory.
    """

    requested_bytes: int
    actual_bytes: int
    total_bytes: int
    has_driver: bool
    guest: GuestMemory | None = None


class MemoryChange(Struct):
    """Another amount of memory, ``ways`` by which it came, and ``why`` by these."""

    before_bytes: int
    requested_bytes: int
    actual_bytes: int
    ways: tuple[Way, ...]
    why: str


def changed(before: MemoryNow, after: MemoryNow, choice: Choice) -> MemoryChange:
    """The change from one look to the next, with what of it was used."""

    def mem(now: MemoryNow) -> int:
        return now.virtio_mem.requested_bytes if now.virtio_mem else 0

    moved = {
        Way.VIRTIO_MEM: mem(before) != mem(after),
        Way.DIMM: before.dimms != after.dimms,
        Way.BALLOON: _held(before) != _held(after),
    }
    return MemoryChange(
        before_bytes=before.actual_bytes,
        requested_bytes=after.requested_bytes,
        actual_bytes=after.actual_bytes,
        ways=tuple(way for way, used in moved.items() if used),
        why=choice.why,
    )


def _held(now: MemoryNow) -> int:
    left = now.balloon_requested_bytes
    return 0 if left is None else now.fixed_bytes - left
