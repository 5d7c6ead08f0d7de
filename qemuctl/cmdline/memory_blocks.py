"""The steps in which guests take memory."""

from __future__ import annotations

from qemuctl.units import GIB, MIB

# The unit in which Linux takes memory in on x86; more for a guest with very much.
MEMORY_BLOCK = 128 * MIB
_LARGE_BLOCK = 2 * GIB
_LARGE_GUEST = 64 * GIB


def virtio_mem_room(room: int, most: int) -> int:
    """The size of a virtio-mem device that gives a guest of ``most`` bytes up to
    ``room`` bytes: guests use whole memory blocks of it."""
    block = _LARGE_BLOCK if most >= _LARGE_GUEST else MEMORY_BLOCK
    return -(-room // block) * block
