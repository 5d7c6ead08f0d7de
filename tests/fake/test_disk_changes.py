"""Disks in and out of a QEMU that fails at every step, and of guests that do not
let go, or late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_qemu import FakeQemu

from qemuctl.errors import (
    CommandError,
    HotplugError,
    QemuctlError,
    SpecError,
    StateError,
    UsageError,
)
from qemuctl.hotplug.disks import add
from qemuctl.hotplug.disks.disks import Disks
from qemuctl.hotplug.disks.results import AddedDisk, RemovedDisk
from qemuctl.registry import hotplug_recovery, rename, vms
from qemuctl.registry.scope import Scope
from qemuctl.spec import Disk, Spec
from qemuctl.units import MIB
from qemuctl.vm.vm import Vm

SHORT = 0.2


def everything(qemu: FakeQemu, vm: Vm) -> Any:
    paths = vm.paths
    return (
        qemu.state(),
        paths.spec.read_text(),
        sorted(paths.disks.glob("*")),
        paths.made.read_text() if paths.made.exists() else "",
        paths.journal.exists(),
    )


NEW = Disk(id="vdb", size=MIB, format="raw", iops=100)


async def test_an_add_that_is_cut_off_at_any_step_is_whole_or_nothing(
    qemu: FakeQemu, vm: Vm
) -> None:
    before = everything(qemu, vm)
    await vm.disks.add(NEW)
    steps = list(qemu.asked)
    whole = everything(qemu, vm)
    assert "device_add" in steps
    await vm.disks.remove("vdb", delete=True)
    assert everything(qemu, vm)[:2] == before[:2]
    before = everything(qemu, vm)
    for step in range(len(steps)):
        for moment in ("before", "after"):
            qemu.forget()
            qemu.faults[step] = moment
            try:
                await vm.disks.add(NEW)
            except QemuctlError:
                # What QEMU has done, though its answer was lost, is not undone.
                assert (steps[step], moment) != ("device_add", "after")
                assert everything(qemu, vm) == before, (steps[step], moment)
                await vm.disks.add(NEW)
            assert everything(qemu, vm) == whole, (steps[step], moment)
            await vm.disks.remove("vdb", delete=True)
            assert everything(qemu, vm) == before


async def test_to_list_disks_nothing_is_asked_of_other_devices(
    qemu: FakeQemu, vm: Vm
) -> None:
    before = [disk.id for disk in await vm.disks.list()]
    await vm.disks.add(NEW)
    qemu.forget()
    assert [disk.id for disk in await vm.disks.list()] == [*before, "vdb"]
    # Of each its bus and its serial.
    assert qemu.asked.count("qom-get") == 2 * (len(before) + 1)
    assert len(await vm.bus.devices()) > len(before) + 1


async def test_a_removal_that_is_cut_off_at_any_step_is_ended_by_the_next(
    qemu: FakeQemu, vm: Vm
) -> None:
    await vm.disks.add(NEW)
    qemu.forget()
    await vm.disks.remove("vdb", delete=True)
    steps = list(qemu.asked)
    gone = everything(qemu, vm)
    assert "device_del" in steps
    for step in range(len(steps)):
        for moment in ("before", "after"):
            await vm.disks.add(NEW)
            qemu.forget()
            qemu.faults[step] = moment
            try:
                await vm.disks.remove("vdb", delete=True, timeout=30)
            except QemuctlError:
                assert steps[step] != "device_del"
                await vm.disks.remove("vdb", delete=True)
            assert everything(qemu, vm) == gone, (steps[step], moment)


@pytest.mark.parametrize(
    "refused", ["blockdev-add", "device_add", "block_set_io_throttle"]
)
async def test_an_add_that_qemu_refuses_leaves_nothing(
    qemu: FakeQemu, vm: Vm, refused: str
) -> None:
    vm.paths.disks.mkdir()
    before = everything(qemu, vm)
    qemu.refuse[refused] = ["no"]
    with pytest.raises(CommandError, match="no"):
        await vm.disks.add(NEW)
    assert everything(qemu, vm) == before
    qemu.refuse["device_add"] = ["no"]
    with pytest.raises(CommandError, match="no"):
        await vm.disks.add(Disk(id="s", size=MIB, format="raw", bus="scsi"))
    assert everything(qemu, vm) == before


async def test_an_add_whose_spec_cannot_be_written_leaves_nothing(
    qemu: FakeQemu, vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = everything(qemu, vm)
    monkeypatch.setattr(add, "reconfigure", full)
    with pytest.raises(OSError, match="No space"):
        await vm.disks.add(NEW)
    assert everything(qemu, vm)[:3] == before[:3]


async def test_an_add_that_is_cancelled_leaves_nothing(qemu: FakeQemu, vm: Vm) -> None:
    vm.paths.disks.mkdir()
    before = everything(qemu, vm)
    for step in range(12):
        qemu.forget()
        task = asyncio.create_task(vm.disks.add(NEW))
        while len(qemu.asked) <= step and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(result, asyncio.CancelledError):
            assert isinstance(result, AddedDisk), result
            break
        assert everything(qemu, vm) == before, qemu.asked
    assert step > 5


async def test_a_guest_that_refuses_keeps_its_disk(qemu: FakeQemu, vm: Vm) -> None:
    await vm.disks.add(NEW)
    before = everything(qemu, vm)
    qemu.guest = "refuses"
    with pytest.raises(HotplugError, match="refuses to let go of vdb") as refused:
        await vm.disks.remove("vdb")
    assert (refused.value.outcome, refused.value.exit_status) == ("refused", 1)
    assert everything(qemu, vm) == before


async def test_what_qemu_does_not_unplug_is_refused(qemu: FakeQemu, vm: Vm) -> None:
    await vm.disks.add(NEW)
    before = everything(qemu, vm)
    qemu.refuse["device_del"] = ["Bus 'x' does not support hotplugging"]
    with pytest.raises(HotplugError, match="does not support") as refused:
        await vm.disks.remove("vdb")
    assert refused.value.outcome == "refused"
    assert everything(qemu, vm) == before


async def _pending(qemu: FakeQemu, vm: Vm) -> None:
    await vm.disks.add(NEW)
    qemu.guest = "silent"
    with pytest.raises(HotplugError, match="has not let go of vdb in") as late:
        await vm.disks.remove("vdb", timeout=SHORT, delete=True)
    assert (late.value.outcome, late.value.exit_status) == ("pending", 3)
    assert {"vdb", "vdb-file"} == set(qemu.nodes)
    assert "id: vdb" in vm.paths.spec.read_text()
    (disk,) = await vm.disks.list()
    assert disk.leaving


def _gone(qemu: FakeQemu, vm: Vm) -> None:
    assert qemu.nodes == {}
    assert "id: vdb" not in vm.paths.spec.read_text()
    assert not list(vm.paths.disks.glob("*"))
    assert not vm.paths.journal.exists()


async def test_a_late_answer_is_acted_on_by_whatever_command_comes(
    qemu: FakeQemu, vm: Vm
) -> None:
    await _pending(qemu, vm)
    with pytest.raises(StateError, match="the id is in use: vdb"):
        await vm.disks.add(NEW)
    qemu.release("vdb", times=3)
    with pytest.raises(StateError, match="no such disk: other"):
        await vm.disks.remove("other")
    _gone(qemu, vm)


async def test_a_late_answer_is_a_removal_for_whoever_asks_again(
    qemu: FakeQemu, vm: Vm
) -> None:
    await _pending(qemu, vm)
    with pytest.raises(HotplugError, match="has not let go"):
        await vm.disks.remove("vdb", timeout=SHORT, delete=True)
    qemu.release("vdb")
    qemu.forget()
    done = await vm.disks.remove("vdb")
    assert isinstance(done, RemovedDisk)
    assert done.deleted
    assert "device_del" not in qemu.asked
    _gone(qemu, vm)


async def test_an_answer_to_the_second_question_counts(qemu: FakeQemu, vm: Vm) -> None:
    await _pending(qemu, vm)
    task = asyncio.create_task(vm.disks.remove("vdb", delete=True))
    qemu.forget()
    while "device_del" not in qemu.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    qemu.release("vdb")
    assert (await task).deleted
    _gone(qemu, vm)


async def test_a_vm_that_ends_has_let_go_of_all(qemu: FakeQemu, vm: Vm) -> None:
    await _pending(qemu, vm)
    hotplug_recovery.conclude_if_off(vm.paths)
    assert vm.paths.journal.exists()  # it is on
    vm.paths.lock.rename(vm.paths.lock.with_name("other"))
    hotplug_recovery.conclude_if_off(vm.paths)
    assert "id: vdb" not in vm.paths.spec.read_text()
    assert not list(vm.paths.disks.glob("*"))
    assert not vm.paths.journal.exists()


async def test_a_blinking_port_is_asked_again(qemu: FakeQemu, vm: Vm) -> None:
    await vm.disks.add(NEW)
    busy = "Hot-unplug failed: guest is busy (power indicator blinking)"
    qemu.refuse["device_del"] = [busy, busy]
    qemu.forget()
    await vm.disks.remove("vdb", delete=True)
    assert qemu.asked.count("device_del") == 3
    _gone(qemu, vm)
    await vm.disks.add(NEW)
    qemu.refuse["device_del"] = [busy] * 9
    with pytest.raises(HotplugError, match="blinking") as late:
        await vm.disks.remove("vdb", timeout=SHORT)
    # The guest was not even asked, so nothing is to come of it later.
    assert late.value.outcome == "refused"
    assert vm.bus.journal.changes() == []


async def test_a_node_that_is_used_a_moment_longer_still_goes(
    qemu: FakeQemu, vm: Vm
) -> None:
    await vm.disks.add(NEW)
    qemu.held["vdb"] = 2
    await vm.disks.remove("vdb", delete=True)
    _gone(qemu, vm)
    await vm.disks.add(NEW)
    qemu.held["vdb"] = 1000
    with pytest.raises(HotplugError) as late:
        await vm.disks.remove("vdb", delete=True)
    assert late.value.outcome == "pending"
    assert "id: vdb" in vm.paths.spec.read_text()
    qemu.held["vdb"] = 0
    await vm.disks.remove("vdb")
    _gone(qemu, vm)


async def test_size_and_limits_are_right_though_the_answer_was_lost(
    qemu: FakeQemu, vm: Vm
) -> None:
    await vm.disks.add(NEW)
    qemu.forget()
    await vm.disks.resize("vdb", 2 * MIB)
    qemu.faults = {qemu.asked.index("block_resize"): "after"}
    qemu.asked.clear()
    await vm.disks.resize("vdb", MIB, relative=True)
    assert (await vm.disks.list())[0].size_bytes == 3 * MIB
    assert "size: 3M" in vm.paths.spec.read_text()
    with pytest.raises(SpecError):
        await vm.disks.limit("vdb", bytes_per_second=7)
    assert (await vm.disks.list())[0].bytes_per_second is None
    limits = await vm.disks.limit("vdb", bytes_per_second=MIB)
    assert (limits.iops, limits.bytes_per_second) == (100, MIB)
    assert Disks(vm, vm.bus) is not vm.disks


async def test_a_removal_that_is_called_off_takes_no_file_afterwards(
    qemu: FakeQemu, vm: Vm
) -> None:
    await vm.disks.add(NEW)
    qemu.guest = "silent"
    task = asyncio.create_task(vm.disks.remove("vdb", delete=True))
    qemu.forget()
    while "device_del" not in qemu.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    qemu.release("vdb")
    await vm.disks.add(Disk(id="other", size=MIB, format="raw"))
    assert "vdb" not in qemu.nodes
    assert (vm.paths.disks / "vdb.raw").exists()
    assert "id: vdb" in vm.paths.spec.read_text()


async def test_a_vm_that_is_renamed_takes_no_file_of_whoever_gets_its_name(
    qemu: FakeQemu, vm: Vm
) -> None:
    await _pending(qemu, vm)
    vm.paths.lock.rename(vm.paths.lock.with_name("other"))  # it has ended
    vm.paths.lock.touch()
    rename.rename("web", "db")
    again = vms.create(Spec(name="web", nics=()))
    again.disks.mkdir()
    mine = again.disks / "vdb.raw"
    mine.write_text("mine")
    db = vms.find("db")
    hotplug_recovery.conclude_if_off(db)
    assert mine.read_text() == "mine"
    assert not db.journal.exists()
    assert "id: vdb" not in db.spec.read_text()


async def test_a_file_that_the_guest_may_be_using_is_not_deleted(
    qemu: FakeQemu, vm: Vm
) -> None:
    await vm.disks.add(NEW)
    with pytest.raises(UsageError, match="web is on") as caught:
        await vm.disks.remove("vdb", scope=Scope.CONFIG, delete=True)
    assert "--delete" in (caught.value.hint or "")
    assert (vm.paths.disks / "vdb.raw").exists()
    assert "id: vdb" in vm.paths.spec.read_text()


async def test_who_asks_a_second_time_hears_of_the_refusal_too(
    qemu: FakeQemu, vm: Vm
) -> None:
    await _pending(qemu, vm)
    task = asyncio.create_task(vm.disks.remove("vdb", timeout=SHORT))
    vm.bus.journal.end("vdb")  # as the first one does when the guest refuses
    with pytest.raises(HotplugError):
        await task
    assert "vdb" in await vm.bus.devices()
