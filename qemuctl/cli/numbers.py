"""Samples and rates as people and programs read them."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from typing import Any

from qemuctl.cli.output import print_fields
from qemuctl.stats.sample import DiskRates, NicRates, Rates, Sample
from qemuctl.units import format_age, format_rounded


def document(sample: Sample, rates: Rates | None) -> dict[str, Any]:
    """A sample for programs, with the rates since the one before it."""
    facts: dict[str, Any] = {"name": sample.name, "state": sample.state}
    facts |= _plain(sample)
    guest = sample.memory.guest
    facts["memory"]["guest_used_bytes"] = guest.used_bytes if guest else None
    return facts | {"rates": _plain(rates)}


def _plain(value: Any) -> Any:
    """As JSON has it; dataclasses.asdict copies each number with care, for which
    `top` has no time."""
    if is_dataclass(value):
        # The clock is one that only this process knows.
        members = [(f.name, getattr(value, f.name)) for f in fields(value)]
        return {name: _plain(x) for name, x in members if name != "clock"}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def size(value: float | None) -> str | None:
    """Bytes for people; None for what nobody tells."""
    return None if value is None else format_rounded(int(value))


def per_second(value: float | None) -> str | None:
    return None if value is None else f"{format_rounded(int(value))}/s"


def percent(share: float) -> str:
    return f"{share * 100:.0f}%"


def print_numbers(sample: Sample, rates: Rates) -> None:
    """One VM, a line for each CPU, disk and card."""
    print_fields(
        {
            "name": sample.name,
            "state": sample.state,
            "rates": f"of the last {_span(rates.seconds)}",
            "cpu": f"{percent(rates.cpu_share)} of a core, {percent(rates.host_share)}"
            f" of the host, {sample.cpu_seconds:.1f} s since the start",
            "vcpus": "\n".join(_vcpus(sample, rates)),
            "memory": _memory(sample),
            "disks": _disks(sample, rates),
            "nics": _nics(sample, rates),
        }
    )
    sys.stdout.flush()


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_age(seconds)


def _vcpus(sample: Sample, rates: Rates) -> list[str]:
    shares = {vcpu.index: vcpu.cpu_share for vcpu in rates.vcpus}
    return [
        f"{vcpu.index}: {percent(shares.get(vcpu.index, 0))}, {vcpu.cpu_seconds:.1f} s"
        for vcpu in sample.vcpus
    ]


def _memory(sample: Sample) -> str:
    memory = sample.memory
    guest = memory.guest.used_bytes if memory.guest else None
    parts = {
        "configured": memory.configured_bytes,
        "less the balloon": memory.actual_bytes,
        "used in the guest": guest,
        "resident": memory.resident_bytes,
        "proportional": memory.proportional_bytes,
    }
    return "\n".join(f"{size(n)} {name}" for name, n in parts.items() if n is not None)


def _disks(sample: Sample, rates: Rates) -> str:
    if sample.disks is None:
        return "not known: QEMU does not answer"
    now = {disk.id: disk for disk in rates.disks or ()}
    return "\n".join(
        f"{disk.id}: read {size(disk.read_bytes)} in {disk.read_operations}, "
        f"written {size(disk.written_bytes)} in {disk.write_operations}"
        + (_disk_now(now[disk.id]) if disk.id in now else "")
        for disk in sample.disks
    )


def _disk_now(disk: DiskRates) -> str:
    operations = disk.read_operations_per_second + disk.write_operations_per_second
    return (
        f"; now {per_second(disk.read_bytes_per_second)} read, "
        f"{per_second(disk.written_bytes_per_second)} written, {operations:.0f} ops/s"
    )


def _nics(sample: Sample, rates: Rates) -> str:
    if sample.nics is None:
        return "not known: only the guest's agent could tell"
    now = {nic.id: nic for nic in rates.nics or ()}
    return "\n".join(
        f"{nic.id}: received {size(nic.received_bytes)}, sent {size(nic.sent_bytes)}"
        + (_nic_now(now[nic.id]) if nic.id in now else "")
        for nic in sample.nics
    )


def _nic_now(nic: NicRates) -> str:
    return (
        f"; now {per_second(nic.received_bytes_per_second)} received, "
        f"{per_second(nic.sent_bytes_per_second)} sent"
    )
