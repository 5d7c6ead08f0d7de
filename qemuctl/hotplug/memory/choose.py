"""By what a running VM gets another amount of memory: a pure choice.

::

    0 ........ size at start ................................. memory.max
    └ balloon ┘             └ virtio-mem (both ways), or DIMMs ┘

The balloon takes from what the guest has; only new memory can make it more than
it started with. virtio-mem goes back in small steps; a DIMM goes as a whole or,
where its guest cannot part with it, not at all.
"""

from __future__ import annotations

from enum import StrEnum

from qemuctl.cmdline.memory_blocks import MEMORY_BLOCK
from qemuctl.errors import SpecError
from qemuctl.structs import Struct
from qemuctl.units import MIB, format_size

# The step of a virtio-mem device on x86 before there is one that tells.
_BLOCK = 2 * MIB


class Way(StrEnum):
    """What memory is given and taken by."""

    BALLOON = "balloon"
    VIRTIO_MEM = "virtio-mem"
    DIMM = "DIMM"


class Dimm(Struct):
    """One DIMM that was plugged in."""

    id: str
    size_bytes: int


class VirtioMem(Struct):
    """The virtio-mem device: what its guest has of it, and what it should have."""

    id: str
    size_bytes: int
    requested_bytes: int
    max_bytes: int
    block_bytes: int


class MemoryNow(Struct):
    """The memory of a running VM.

    ``balloon_bytes`` is what the balloon leaves of the memory at start and the DIMMs,
    ``balloon_requested_bytes`` what it was asked to leave; both None without
    the device.
    """

    start_bytes: int
    max_bytes: int
    dimms: tuple[Dimm, ...] = ()
    virtio_mem: VirtioMem | None = None
    balloon_bytes: int | None = None
    balloon_requested_bytes: int | None = None

    @property
    def fixed_bytes(self) -> int:
        """What the balloon can take from: the memory at start and the DIMMs."""
        return self.start_bytes + sum(dimm.size_bytes for dimm in self.dimms)

    @property
    def actual_bytes(self) -> int:
        """What the guest has now."""
        left = self.fixed_bytes if self.balloon_bytes is None else self.balloon_bytes
        return left + (self.virtio_mem.size_bytes if self.virtio_mem else 0)

    @property
    def requested_bytes(self) -> int:
        """What the guest should have: the same, once it has done what it was asked."""
        left = self.balloon_requested_bytes
        return (self.fixed_bytes if left is None else left) + (
            self.virtio_mem.requested_bytes if self.virtio_mem else 0
        )


class Choice(Struct):
    """The steps to an amount of memory, and why these.

    ``virtio_mem_bytes`` is the device's new size, ``new_dimm_bytes`` a DIMM to plug
    in, ``out`` the DIMMs to take out, ``balloon_bytes`` what the balloon leaves
    of the rest in the end.
    """

    why: str
    virtio_mem_bytes: int = 0
    new_dimm_bytes: int = 0
    out: tuple[str, ...] = ()
    balloon_bytes: int


def choose(
    now: MemoryNow, wanted_bytes: int, *, virtio_mem: bool, why_not: str = ""
) -> Choice:
    """The way from ``now`` to ``wanted_bytes``.

    ``virtio_mem`` tells whether the guest takes it, ``why_not`` why it does not.
    Raises SpecError, naming `memory.max` or `memory.size`, where there is none.
    """
    _check(now, wanted_bytes)
    start = format_size(now.start_bytes)
    extra = wanted_bytes - now.start_bytes
    if extra <= 0:
        return Choice(
            why=f"no more than the {start} that it started with",
            out=tuple(dimm.id for dimm in now.dimms),
            balloon_bytes=wanted_bytes,
        )
    if virtio_mem and not now.dimms:
        block = now.virtio_mem.block_bytes if now.virtio_mem else _BLOCK
        _check_steps(extra, block, wanted_bytes, Way.VIRTIO_MEM)
        return Choice(
            why=f"more than the {start} that it started with",
            virtio_mem_bytes=extra,
            balloon_bytes=now.start_bytes,
        )
    return _by_dimms(now, extra, wanted_bytes, why_not or "it has DIMMs already")


def _check(now: MemoryNow, wanted_bytes: int) -> None:
    if wanted_bytes < MIB or wanted_bytes % MIB:
        raise SpecError(
            f"not a whole number of MiB: {wanted_bytes} bytes",
            key="memory.size", hint="write 512M or 2G",
        )  # fmt: skip
    if wanted_bytes > now.max_bytes:
        most = format_size(now.max_bytes)
        reason = (
            f"it was started without memory.max, so {most} is the most"
            if now.max_bytes == now.start_bytes
            else f"it was started with {most}"
        )
        raise SpecError(
            f"too much for this run: {format_size(wanted_bytes)} ({reason})",
            key="memory.max",
            hint="set memory.max in the spec, or use --config; the next start has it",
        )


def _check_steps(extra: int, step: int, wanted_bytes: int, way: Way) -> None:
    rest = extra % step
    if rest == 0:
        return
    below, above = wanted_bytes - rest, wanted_bytes - rest + step
    raise SpecError(
        f"{way} comes in steps of {format_size(step)}: {format_size(wanted_bytes)}",
        key="memory.size",
        hint=f"{format_size(below)} or {format_size(above)} would do",
    )


def _by_dimms(now: MemoryNow, extra: int, wanted_bytes: int, why: str) -> Choice:
    there = sum(dimm.size_bytes for dimm in now.dimms)
    if extra > there:
        _check_steps(extra - there, MEMORY_BLOCK, wanted_bytes, Way.DIMM)
        return Choice(
            why=why,
            new_dimm_bytes=extra - there,
            balloon_bytes=wanted_bytes,
        )
    out = []
    # The last one in is the one that its guest uses least.
    for dimm in reversed(now.dimms):
        if there - dimm.size_bytes >= extra:
            there -= dimm.size_bytes
            out.append(dimm.id)
    return Choice(why=why, out=tuple(out), balloon_bytes=wanted_bytes)
