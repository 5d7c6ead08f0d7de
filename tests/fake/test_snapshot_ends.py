"""Snapshots and reboots at moments that a real QEMU cannot be brought to in time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_vm import MIB, fake_vm

from qemuctl.errors import AgentError, StateError
from qemuctl.power import power
from qemuctl.process.usage import Usage
from qemuctl.qmp import eventstream
from qemuctl.snapshots import disks
from qemuctl.snapshots.disks import Carrier, check_room
from qemuctl.snapshots.online import _in_full

DISK = Carrier(id="disk0", path=Path("disk0.qcow2"), format="qcow2")


@pytest.fixture
def _little_is_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Usage(cpu_seconds=1.0, resident_bytes=20 * MIB)
    monkeypatch.setattr(disks, "usage", lambda _: small)
    monkeypatch.setattr(disks, "_free_bytes", lambda _: 100 * MIB)
    monkeypatch.setattr(disks, "swapped_bytes", lambda _: 0)


@pytest.mark.usefixtures("_little_is_resident")
async def test_a_fork_needs_room_for_what_its_template_has_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_vm("name: fake\n") as (vm, _):
        await check_room(vm, DISK)
        monkeypatch.setattr(vm, "record", replace(vm.record, template="db"))
        with pytest.raises(StateError, match="may take 256M"):
            await check_room(vm, DISK)


@pytest.mark.usefixtures("_little_is_resident")
async def test_what_is_swapped_out_needs_room_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disks, "swapped_bytes", lambda _: 90 * MIB)
    async with fake_vm("name: fake\n") as (vm, _):
        with pytest.raises(StateError, match="may take 110M"):
            await check_room(vm, DISK)


async def _cut_off(work: Any, go_on: asyncio.Event) -> asyncio.Task[Any]:
    task = asyncio.create_task(_in_full(work))
    await asyncio.sleep(0)  # it has begun
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({task})
    return task


async def test_who_is_cut_off_still_hears_that_it_failed() -> None:
    go_on = asyncio.Event()

    async def fails() -> None:
        await go_on.wait()
        raise StateError("revert", "running", "no")

    task = await _cut_off(fails(), go_on)
    with pytest.raises(StateError):
        task.result()


async def test_who_is_cut_off_from_what_succeeds_is_cut_off() -> None:
    go_on = asyncio.Event()
    task = await _cut_off(go_on.wait(), go_on)
    assert task.cancelled()


async def test_a_guest_that_resets_while_it_is_looked_for_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power, "_ASK_EVERY", 0.05)
    has_reset, pings = asyncio.Event(), 0

    async def ping(**_: Any) -> None:
        nonlocal pings
        pings += 1
        if pings == 2:  # the first request was heard, late
            has_reset.set()
            for _turn in range(3):
                await asyncio.sleep(0)
        raise AgentError("no answer")

    monkeypatch.setattr(eventstream, "upcoming", lambda *_: has_reset.wait())
    async with fake_vm("name: fake\n") as (vm, qemu):
        monkeypatch.setattr(vm.agent, "ping", ping)
        assert await vm.power.reboot(timeout=60.0) == "keyboard"
        assert pings == 2
        assert qemu.names().count("send-key") == 1
