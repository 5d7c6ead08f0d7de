"""The last samples of a VM, which whoever took them leaves for the next one's rates.

They are of one process, in the folder of its sockets. There are two: a rate needs a
while between its samples, for CPU time is counted in hundredths of a second, and the
last sample may be of this very moment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, TypeVar

from qemuctl import durable
from qemuctl.errors import HostError
from qemuctl.paths import VmPaths
from qemuctl.process import Identity
from qemuctl.process.usage import started_at
from qemuctl.stats.sample import (
    Counters,
    DiskCounters,
    NicCounters,
    Rates,
    VcpuTime,
    rates,
)

# Seconds between samples that are compared.
_LEAST = 1.0
_LARGEST = 2**64 - 1
_NUMBERS = ("pid", "clock", "cpu_seconds")

P = TypeVar("P", VcpuTime, DiskCounters, NicCounters)


def rates_since(paths: VmPaths, qemu: Identity, now: Counters) -> Rates | None:
    """The rates since the last sample that anybody took of this process, a second ago
    or more; since its start, without cards, when there is none.

    A file that makes no sense is as none.
    """
    for before in reversed(_read(paths, qemu)):
        if now.clock - before.clock >= _LEAST and (found := rates(before, now)):
            return found
    return rates(_at_start(qemu, now), now)


def keep(paths: VmPaths, qemu: Identity, now: Counters) -> None:
    """Leaves a sample for the next one. Never raises: it is of use, not needed."""
    if now.disks is None:  # QEMU did not answer; who compares wants one that is whole
        return
    before = _read(paths, qemu)[-1:]
    if before and 0 <= now.clock - before[0].clock < _LEAST:
        return
    counted = Counters(**{f.name: getattr(now, f.name) for f in fields(Counters)})
    every = [asdict(each) for each in (*before, counted)]
    with contextlib.suppress(HostError):
        kept = {"qemu": asdict(qemu), "samples": every}
        durable.write_json(paths.sampled, kept, durable=False)


def _read(paths: VmPaths, qemu: Identity) -> list[Counters]:
    with contextlib.suppress(
        OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError
    ):
        found = json.loads(paths.sampled.read_bytes())
        if Identity(**found["qemu"]) == qemu:
            return [_counters(each) for each in found["samples"]]
    return []


def _counters(found: dict[str, Any]) -> Counters:
    """Raises ValueError, TypeError or LookupError for what is none."""
    disks, nics = found["disks"], found["nics"]
    return Counters(
        **{name: _number(name, found[name]) for name in _NUMBERS},
        vcpus=_parts(VcpuTime, found["vcpus"]),
        disks=None if disks is None else _parts(DiskCounters, disks),
        nics=None if nics is None else _parts(NicCounters, nics),
    )


def _parts(type_: Callable[..., P], found: list[dict[str, Any]]) -> tuple[P, ...]:
    return tuple(
        type_(**{key: _number(key, value) for key, value in each.items()})
        for each in found
    )


def _number(name: str, value: Any) -> Any:
    if name == "id":
        return str(value)
    if not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        raise ValueError(f"not a counter: {value!r:.60}")
    return value


def _at_start(qemu: Identity, now: Counters) -> Counters:
    """When QEMU started, all that it counts was zero. What guests and the host count
    of cards was not: a guest may have been restored, and an interface was there."""
    begun = started_at(qemu)
    return Counters(
        pid=now.pid,
        clock=begun,
        cpu_seconds=0.0,
        vcpus=tuple(VcpuTime(index=cpu.index, cpu_seconds=0.0) for cpu in now.vcpus),
        disks=now.disks and tuple(_zero(disk, begun) for disk in now.disks),
    )


def _zero(disk: DiskCounters, begun: float) -> DiskCounters:
    zeros: dict[str, Any] = dict.fromkeys((field.name for field in fields(disk)), 0)
    return DiskCounters(**zeros | {"id": disk.id, "clock": begun})
