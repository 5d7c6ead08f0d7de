"""Another amount of memory, with a QEMU and a guest that give odd answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fake_vm import MIB, Dropped, FakeQemu, Refused, fake_vm

from qemuctl.cli import resources
from qemuctl.errors import (
    CommandError,
    HotplugError,
    SpecError,
    StateError,
    UnexpectedExit,
)
from qemuctl.hotplug import bus
from qemuctl.hotplug.guest_ready import settles
from qemuctl.hotplug.memory import devices, memory
from qemuctl.hotplug.memory.choose import Way
from qemuctl.qmp.memory import BalloonChange
from qemuctl.registry.records.outcome import Outcome

REQUEST = {
    "path": "/machine/peripheral/vmem0",
    "property": "requested-size",
    "value": 256 * MIB,
}
SPEC = "name: fake\nmemory:\n  size: 256M\n  max: 1G\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STALL", 0.3)
    monkeypatch.setattr(devices, "_STALL", 0.3)
    monkeypatch.setattr(devices, "_FIRST", 0.3)
    monkeypatch.setattr(devices, "_ANSWER", 0.5)


def with_balloon(qemu: FakeQemu, reached: int | None = None) -> None:
    """The guest keeps what it is asked to, or no less than ``reached``."""

    def balloon(arguments: dict[str, Any]) -> dict[str, Any]:
        qemu.balloon = max(arguments["value"], reached or 0)
        qemu.event("BALLOON_CHANGE", actual=qemu.balloon)
        return {}

    qemu.answers["balloon"] = balloon


async def cut_off(work: Any, seen: Callable[[], object]) -> None:
    """Ctrl-C, as soon as something has been seen."""
    task = asyncio.ensure_future(work)
    async with asyncio.timeout(60):
        while not seen():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def with_dimms(
    qemu: FakeQemu, *, plugged: int | None = 0, asked_back: int | None = 0
) -> None:
    """A machine for DIMMs whose guest answers with these codes, or not."""
    sizes: dict[str, int] = {}
    dimms: dict[str, int] = {}

    def object_add(arguments: dict[str, Any]) -> dict[str, Any]:
        sizes[arguments["id"]] = arguments["size"]
        return {}

    def device_add(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["driver"] != "pc-dimm":
            raise Refused("'virtio-mem-pci' is not a valid device model name")
        id_, size = arguments["id"], sizes[arguments["memdev"]]
        qemu.devices[id_] = "pc-dimm"
        dimms[id_] = size
        qemu.balloon += size
        if plugged is not None:
            qemu.ost(id_, 1, plugged)
            qemu.ost(id_, 1, plugged)  # once more
        if plugged == 0:
            qemu.stats_total += size
        return {}

    def device_del(arguments: dict[str, Any]) -> dict[str, Any]:
        id_ = arguments["id"]
        qemu.ost("dimm7", 3, 0x82)  # of another one, late
        qemu.ost(id_, 3, 0x84)
        if asked_back is None:
            return {}
        if asked_back:
            qemu.ost(id_, 3, asked_back)
            return {}
        qemu.balloon -= dimms.pop(id_)
        del qemu.devices[id_]
        qemu.event("DEVICE_DELETED", device=id_, path=f"/machine/peripheral/{id_}")
        qemu.event("DEVICE_DELETED", path=f"/machine/peripheral/{id_}/part")
        return {}

    qemu.answers |= {
        "object-add": object_add,
        "device_add": device_add,
        "device_del": device_del,
        "query-memory-devices": lambda _: [
            {"type": "dimm", "data": {"id": id_, "size": size}}
            for id_, size in dimms.items()
        ],
    }


def with_virtio_mem(
    qemu: FakeQemu, *, takes: bool, least: int = 0, most: int = 1024 * MIB
) -> None:
    """A machine with virtio-mem; the guest goes no lower than ``least``, no higher
    than ``most``."""
    mem: dict[str, Any] = {}
    before = dict(qemu.answers)

    def device_add(arguments: dict[str, Any]) -> Any:
        if arguments["driver"] != "virtio-mem-pci":
            return before["device_add"](arguments)
        qemu.devices["vmem0"] = "virtio-mem-pci"
        mem.update({"id": "vmem0", "size": 0, "requested-size": 0,
                    "max-size": 1024 * MIB, "block-size": 2 * MIB})  # fmt: skip
        return {}

    def qom_set(arguments: dict[str, Any]) -> Any:
        if arguments["property"] == "requested-size":
            mem["requested-size"] = arguments["value"]
            if takes:
                mem["size"] = min(max(arguments["value"], least), most)
                path = "/machine/peripheral/vmem0"
                size = mem["size"]
                for _ in range(2):
                    qemu.event(
                        "MEMORY_DEVICE_SIZE_CHANGE",
                        id="vmem0", size=size, **{"qom-path": path},
                    )  # fmt: skip
        return {}

    def devices(arguments: dict[str, Any]) -> Any:
        dimms = before["query-memory-devices"](arguments)
        return [*dimms, *([{"type": "virtio-mem", "data": mem}] if mem else [])]

    qemu.devices["port0"] = "pcie-root-port"
    qemu.answers |= {
        "device_add": device_add, "qom-set": qom_set, "query-memory-devices": devices,
    }  # fmt: skip


async def test_a_balloon_that_stalls_is_pending_and_says_how_far_it_came() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_balloon(qemu, reached=200 * MIB)
        with pytest.raises(HotplugError, match="100M requested, 200M so far") as caught:
            await vm.memory.balloon(100 * MIB)
        assert caught.value.exit_status == 3
        report = await vm.memory.balloon()
        assert report.requested_bytes == 100 * MIB
        assert report.actual_bytes == 200 * MIB


async def test_who_does_not_wait_is_told_what_was_asked_for() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_balloon(qemu, reached=200 * MIB)
        report = await vm.memory.balloon(100 * MIB, wait=False)
        assert (report.requested_bytes, report.actual_bytes) == (100 * MIB, 200 * MIB)
        assert report.guest is None


async def test_a_balloon_without_a_driver_is_not_even_asked() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        qemu.has_driver = False
        with pytest.raises(StateError, match="no balloon driver"):
            await vm.memory.balloon(128 * MIB)
        assert "balloon" not in qemu.names()
        report = await vm.memory.balloon()
        assert not report.has_driver
        assert report.requested_bytes == report.actual_bytes == 256 * MIB


async def test_a_driver_from_before_a_reset_is_none() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        assert (await vm.memory.balloon()).has_driver
        stats = qemu._property({"property": "guest-stats"})
        stats["last-update"] -= 100
        usual = qemu.answers["qom-get"]
        qemu.answers["qom-get"] = lambda a: (
            stats if a["property"] == "guest-stats" else usual(a)
        )
        assert (await vm.memory.balloon()).has_driver
        qemu.event("RESET", guest=True, reason="guest-reset")
        assert not (await vm.memory.balloon()).has_driver


async def test_no_balloon_device_is_an_error_that_names_the_key() -> None:
    async with fake_vm(SPEC) as (vm, qemu):

        def none(_: dict[str, Any]) -> Any:
            raise Refused("No balloon device has been activated")

        qemu.answers["query-balloon"] = qemu.answers["qom-get"] = none
        for size in (None, 128 * MIB):
            with pytest.raises(StateError, match="no balloon device") as caught:
                await vm.memory.balloon(size)
            assert "balloon: true" in (caught.value.hint or "")


async def test_a_guest_does_not_give_what_it_uses() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_balloon(qemu)
        with pytest.raises(StateError, match="only 200M to spare"):
            await vm.memory.balloon(50 * MIB)
        assert "balloon" not in qemu.names()


async def test_a_monitor_that_is_lost_in_the_middle_is_asked_again() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_balloon(qemu)
        usual, lost = qemu.answers["balloon"], []

        def balloon(arguments: dict[str, Any]) -> Any:
            if not lost:
                lost.append(True)
                raise Dropped
            return usual(arguments)

        qemu.answers["balloon"] = balloon
        report = await vm.memory.balloon(128 * MIB)
        assert lost
        assert report.actual_bytes == 128 * MIB


async def test_a_dimm_whose_reply_was_lost_is_there_all_the_same() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        usual = qemu.answers["device_add"]

        def device_add(arguments: dict[str, Any]) -> Any:
            usual(arguments)
            raise Dropped

        qemu.answers["device_add"] = device_add
        change = await vm.memory.resize(512 * MIB)
        assert change.ways == (Way.DIMM,)
        assert change.actual_bytes == 512 * MIB


async def test_a_guest_that_refuses_a_dimm_gets_it_taken_back() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu, plugged=1)
        with pytest.raises(
            HotplugError, match="did not accept a DIMM of 256M"
        ) as caught:
            await vm.memory.resize(512 * MIB)
        assert caught.value.outcome == "refused"
        assert "still there" not in str(caught.value)
        assert "dimm0" not in qemu.devices
        assert ("object-del", {"id": "dimm0-mem"}) in qemu.sent
        assert vm.bus.journal.changes() == []


async def test_a_dimm_that_the_guest_does_not_use_is_taken_back() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        usual = qemu.answers["device_add"]

        def device_add(arguments: dict[str, Any]) -> Any:
            usual(arguments)
            qemu.stats_total = 256 * MIB
            return {}

        qemu.answers["device_add"] = device_add
        with pytest.raises(HotplugError, match="does not use a DIMM"):
            await vm.memory.resize(512 * MIB)
        assert "dimm0" not in qemu.devices


@pytest.mark.parametrize("status", [0x80, 0x81, 0x82, 0x83, 1, 2])
async def test_a_guest_that_keeps_a_dimm_is_an_error(status: int) -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu, asked_back=status)
        await vm.memory.resize(384 * MIB)
        with pytest.raises(HotplugError, match="did not let go of it") as caught:
            await vm.memory.resize(256 * MIB)
        assert caught.value.outcome == "refused"
        assert "dimm0" in qemu.devices
        assert vm.bus.journal.changes() == []


@pytest.mark.parametrize("name", ["MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR"])
async def test_the_other_events_of_a_refusal_count_too(name: str) -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        await vm.memory.resize(384 * MIB)

        def device_del(arguments: dict[str, Any]) -> Any:
            qemu.event(name, device=arguments["id"], msg="no", path="/x")
            return {}

        qemu.answers["device_del"] = device_del
        with pytest.raises(HotplugError, match="did not let go of it"):
            await vm.memory.resize(256 * MIB)


async def test_a_dimm_that_goes_late_is_done_by_the_next_command() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        await vm.memory.resize(384 * MIB)
        usual = qemu.answers["device_del"]
        qemu.answers["device_del"] = lambda _: {}
        with pytest.raises(HotplugError, match="not answered yet") as caught:
            await vm.memory.resize(256 * MIB, timeout=0.2)
        assert caught.value.exit_status == 3
        assert "object-del" not in qemu.names()
        usual({"id": "dimm0"})
        change = await vm.memory.resize(256 * MIB)
        assert change.actual_bytes == 256 * MIB
        assert ("object-del", {"id": "dimm0-mem"}) in qemu.sent


async def test_virtio_mem_that_no_guest_takes_gives_way_to_a_dimm() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        with_virtio_mem(qemu, takes=False)
        change = await vm.memory.resize(512 * MIB)
        assert change.ways == (Way.DIMM,)
        assert change.why == "its guest takes no virtio-mem"
        assert change.actual_bytes == change.requested_bytes == 512 * MIB


async def test_the_balloon_makes_up_for_what_virtio_mem_keeps() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_balloon(qemu)
        with_dimms(qemu)
        with_virtio_mem(qemu, takes=True, least=6 * MIB)
        qemu.available = 400 * MIB
        change = await vm.memory.resize(512 * MIB)
        assert change.ways == (Way.VIRTIO_MEM,)
        change = await vm.memory.resize(256 * MIB)
        assert change.ways == (Way.VIRTIO_MEM, Way.BALLOON)
        assert change.actual_bytes == change.requested_bytes == 256 * MIB
        assert "keeps 6M" in change.why
        assert qemu.balloon == 250 * MIB


async def test_without_a_driver_what_virtio_mem_keeps_is_pending() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        with_virtio_mem(qemu, takes=True, least=6 * MIB)
        await vm.memory.resize(512 * MIB)
        qemu.has_driver = False
        qemu.event("VSERPORT_CHANGE", id="agent", open=True)
        with pytest.raises(HotplugError, match="still to give back 6M") as caught:
            await vm.memory.resize(256 * MIB)
        assert caught.value.outcome == "pending"


async def test_virtio_mem_that_is_taken_in_part_is_asked_back_to_nothing() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        with_virtio_mem(qemu, takes=True, most=128 * MIB)
        with pytest.raises(HotplugError, match=r"only 128M of 256M .* gone") as caught:
            await vm.memory.resize(512 * MIB)
        assert caught.value.outcome == "refused"
        now = await vm.memory.now()
        assert now.actual_bytes == now.requested_bytes == 256 * MIB


async def test_virtio_mem_that_is_taken_in_part_is_asked_back_to_what_it_was() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        with_virtio_mem(qemu, takes=True, most=128 * MIB)
        await vm.memory.resize(320 * MIB)
        with pytest.raises(HotplugError, match="only 128M of 256M"):
            await vm.memory.resize(512 * MIB)
        now = await vm.memory.now()
        assert now.actual_bytes == now.requested_bytes == 320 * MIB


async def test_virtio_mem_that_does_not_come_back_is_pending() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        with_virtio_mem(qemu, takes=True, least=6 * MIB, most=128 * MIB)
        with pytest.raises(HotplugError, match="6M is still to come") as caught:
            await vm.memory.resize(512 * MIB)
        assert caught.value.outcome == "pending"
        assert (await vm.memory.now()).requested_bytes == 256 * MIB


async def test_virtio_mem_is_asked_back_when_it_is_cut_off() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        with_virtio_mem(qemu, takes=True, most=128 * MIB)
        asked = ("qom-set", REQUEST)
        await cut_off(vm.memory.resize(512 * MIB), lambda: asked in qemu.sent)
        now = await vm.memory.now()
        assert now.actual_bytes == now.requested_bytes == 256 * MIB


async def test_a_dimm_that_is_cut_off_goes_again() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu, plugged=None)
        await cut_off(vm.memory.resize(512 * MIB), lambda: "dimm0" in qemu.devices)
        assert "dimm0" not in qemu.devices
        assert ("object-del", {"id": "dimm0-mem"}) in qemu.sent
        assert vm.bus.journal.changes() == []


async def test_a_dimm_that_is_cut_off_before_qemu_has_replied_goes_too() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        usual, task = qemu.answers["device_add"], asyncio.current_task()
        assert task is not None

        def device_add(arguments: dict[str, Any]) -> Any:
            task.cancel()
            return usual(arguments)

        qemu.answers["device_add"] = device_add
        with pytest.raises(asyncio.CancelledError):
            await vm.memory.resize(512 * MIB)
        task.uncancel()
        assert "dimm0" not in qemu.devices
        assert vm.bus.journal.changes() == []


async def test_a_dimm_without_an_answer_is_said_to_have_none() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu, plugged=None, asked_back=None)
        with pytest.raises(HotplugError, match=r"did not answer .*still to go") as why:
            await vm.memory.resize(512 * MIB)
        assert why.value.exit_status == 3
        assert [c.device for c in vm.bus.journal.changes()] == ["dimm0"]


async def test_a_dimm_that_qemu_itself_keeps_is_refused_in_words() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        await vm.memory.resize(384 * MIB)

        def device_del(_: dict[str, Any]) -> Any:
            raise Refused("not supported by the board")

        qemu.answers["device_del"] = device_del
        with pytest.raises(HotplugError, match="dimm0 cannot be taken out") as caught:
            await vm.memory.resize(256 * MIB)
        assert caught.value.outcome == "refused"
        assert "not supported by the board" in str(caught.value)


async def test_a_dimm_whose_memory_stays_is_pending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bus, "_LETS_GO", 0.0)
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        await vm.memory.resize(384 * MIB)

        def object_del(_: dict[str, Any]) -> Any:
            raise Refused("object 'dimm0-mem' is in use, can not be deleted")

        qemu.answers["object-del"] = object_del
        with pytest.raises(HotplugError, match="not freed its memory") as caught:
            await vm.memory.resize(256 * MIB)
        assert caught.value.exit_status == 3


async def test_a_look_that_fails_leaves_no_wait_behind() -> None:
    """A coroutine that nobody awaits is a warning, and thus an error."""
    async with fake_vm(SPEC) as (vm, _):

        async def read() -> int:
            raise CommandError("query-balloon", "GenericError", "no")

        with pytest.raises(CommandError):
            await settles(vm, BalloonChange, read, 1, timeout=30.0, stall=30.0)


async def test_a_qemu_that_ends_in_the_middle_of_a_look_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_vm(SPEC) as (vm, _):

        async def ended() -> Outcome:
            return Outcome(-9, None, False, None, "killed by signal 9")

        async def read() -> int:
            await asyncio.Event().wait()
            return 1

        monkeypatch.setattr(vm, "wait_exit", ended)
        async with asyncio.timeout(60):
            with pytest.raises(UnexpectedExit, match="killed by signal 9"):
                await settles(vm, BalloonChange, read, 1, timeout=30.0, stall=30.0)


async def test_a_change_is_told_as_data_also_where_it_fails() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        changes: list[dict[str, Any]] = []
        await resources._memory_live(vm, 512 * MIB, 30.0, changes)
        with_dimms(qemu, plugged=1)
        with pytest.raises(HotplugError):
            await resources._memory_live(vm, 768 * MIB, 30.0, changes)
    done, failed = changes
    assert done == {
        "what": "memory", "before": 256 * MIB, "after": 512 * MIB, "by": ["DIMM"],
        "why": "no port is free for virtio-mem",
        "outcome": "done", "configured": False,
    }  # fmt: skip
    assert (failed["what"], failed["outcome"]) == ("memory", "refused")
    assert "did not accept a DIMM" in failed["error"]


async def test_what_is_not_possible_sends_nothing() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        for size, key in ((2048 * MIB, "memory.max"), (1000, "memory.size")):
            with pytest.raises(SpecError) as caught:
                await vm.memory.resize(size)
            assert caught.value.key == key
            assert caught.value.hint
        qemu.has_driver = False
        with pytest.raises(StateError, match="neither agent nor balloon driver"):
            await vm.memory.resize(512 * MIB)
        queries = ("query", "qom-get", "qom-list", "qom-set")
        assert all(name.startswith(queries) for name in qemu.names())
