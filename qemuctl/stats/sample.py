"""Numbers of one VM at one moment, and what two moments make of them.

Nothing here reads anything. Counters grow from the start of the VM; each
reading has its ``clock``, seconds since the host's boot (`usage.clock`), for not
all of a sample is read at the same pace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from qemuctl.hotplug.balloon_stats import GuestMemory
from qemuctl.registry.states import State
from qemuctl.structs import Struct


class MemoryUse(Struct):
    """``configured_bytes`` is what the VM was given, ``actual_bytes`` what the
    balloon leaves of it, resident and proportional what it takes of the host."""

    configured_bytes: int
    actual_bytes: int | None = None
    resident_bytes: int | None = None
    proportional_bytes: int | None = None
    guest: GuestMemory | None = None


class VcpuTime(Struct):
    """CPU seconds of the host's thread that runs one virtual CPU."""

    index: int
    cpu_seconds: float


class DiskCounters(Struct):
    """What the guest has read and written through one device."""

    id: str
    clock: float
    read_bytes: int
    written_bytes: int
    read_operations: int
    write_operations: int
    flush_operations: int


class NicCounters(Struct):
    """What one card has received and sent, as the guest sees it."""

    id: str
    clock: float
    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int


class Counters(Struct):
    """What has been counted of one run of a VM: all that `rates` compares.

    ``disks`` is None when QEMU does not answer, ``nics`` when nobody counts:
    QEMU has no counters of user networking, so the guest's agent is asked.
    """

    pid: int
    clock: float
    cpu_seconds: float
    vcpus: tuple[VcpuTime, ...]
    disks: tuple[DiskCounters, ...] | None = None
    nics: tuple[NicCounters, ...] | None = None


class Sample(Counters):
    """One look at one VM; ``at`` in seconds since the epoch."""

    name: str
    state: State
    at: float
    memory: MemoryUse


class VcpuShare(Struct):
    """Cores that one virtual CPU took: 1.0 is a whole one."""

    index: int
    cpu_share: float


class DiskRates(Struct):
    id: str
    read_bytes_per_second: float
    written_bytes_per_second: float
    read_operations_per_second: float
    write_operations_per_second: float
    flush_operations_per_second: float


class NicRates(Struct):
    id: str
    received_bytes_per_second: float
    sent_bytes_per_second: float
    received_packets_per_second: float
    sent_packets_per_second: float


class Rates(Struct):
    """What happened between two samples of one VM, ``seconds`` apart.

    ``cpu_share`` counts cores (1.5 is one and a half), ``host_share`` is the
    part of all the host's cores. ``disks`` and ``nics`` are None when there
    are no two readings of them.
    """

    seconds: float
    cpu_share: float
    host_share: float
    vcpus: tuple[VcpuShare, ...]
    disks: tuple[DiskRates, ...] | None = None
    nics: tuple[NicRates, ...] | None = None


def rates(before: Counters, after: Counters) -> Rates | None:
    """The rates between two samples; None when they are of different runs of
    the VM, or the same."""
    seconds = after.clock - before.clock
    if before.pid != after.pid or seconds <= 0:
        return None
    share = max(0.0, after.cpu_seconds - before.cpu_seconds) / seconds
    earlier = {vcpu.index: vcpu.cpu_seconds for vcpu in before.vcpus}
    return Rates(
        seconds=seconds,
        cpu_share=share,
        host_share=share / (os.cpu_count() or 1),
        vcpus=tuple(
            VcpuShare(
                index=vcpu.index,
                # One that was unplugged and plugged again counts from nothing.
                cpu_share=max(0.0, vcpu.cpu_seconds - earlier[vcpu.index]) / seconds,
            )
            for vcpu in after.vcpus
            if vcpu.index in earlier
        ),
        disks=_each(before.disks, after.disks, _disk_rates),
        nics=_each(before.nics, after.nics, _nic_rates),
    )


C = TypeVar("C", DiskCounters, NicCounters)
R = TypeVar("R")


def _each(
    before: Iterable[C] | None,
    after: Iterable[C] | None,
    compare: Callable[[C, C, float], R],
) -> tuple[R, ...] | None:
    """The rates of each device that is in both readings."""
    if before is None or after is None:
        return None
    earlier, later = {x.id: x for x in before}, {x.id: x for x in after}
    found = tuple(
        compare(earlier[name], now, now.clock - earlier[name].clock)
        for name, now in later.items()
        if name in earlier and now.clock > earlier[name].clock
    )
    return found or (None if later else ())


def _rate(before: int, after: int, seconds: float) -> float:
    # A device that was plugged again, or a guest that lies, counts from nothing.
    return max(0, after - before) / seconds


def _disk_rates(before: DiskCounters, after: DiskCounters, seconds: float) -> DiskRates:
    def rate(name: str) -> float:
        return _rate(getattr(before, name), getattr(after, name), seconds)

    return DiskRates(
        id=after.id,
        read_bytes_per_second=rate("read_bytes"),
        written_bytes_per_second=rate("written_bytes"),
        read_operations_per_second=rate("read_operations"),
        write_operations_per_second=rate("write_operations"),
        flush_operations_per_second=rate("flush_operations"),
    )


def _nic_rates(before: NicCounters, after: NicCounters, seconds: float) -> NicRates:
    def rate(name: str) -> float:
        return _rate(getattr(before, name), getattr(after, name), seconds)

    return NicRates(
        id=after.id,
        received_bytes_per_second=rate("received_bytes"),
        sent_bytes_per_second=rate("sent_bytes"),
        received_packets_per_second=rate("received_packets"),
        sent_packets_per_second=rate("sent_packets"),
    )
