"""Another amount of memory, with a QEMU and a guest that give odd answers."""

from __future__ import annotations

from typing import Any

import pytest
from fake_vm import MIB, Dropped, FakeQemu, Refused, fake_vm

from qemuctl.errors import HotplugError, SpecError, StateError
from qemuctl.vm import memory, memory_devices
from qemuctl.vm.memory_choice import Way

SPEC = "name: fake\nmemory:\n  size: 256M\n  max: 1G\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STALL", 0.3)
    monkeypatch.setattr(memory_devices, "_STALL", 0.3)
    monkeypatch.setattr(memory_devices, "_FIRST", 0.3)
    monkeypatch.setattr(memory_devices, "_ANSWER", 0.5)


def with_balloon(qemu: FakeQemu, reached: int | None = None) -> None:
    """The guest keeps what it is asked to, or no less than ``reached``."""

    def balloon(arguments: dict[str, Any]) -> dict[str, Any]:
        qemu.balloon = max(arguments["value"], reached or 0)
        qemu.event("BALLOON_CHANGE", actual=qemu.balloon)
        return {}

    qemu.answers["balloon"] = balloon


def with_dimms(qemu: FakeQemu, *, plugged: int = 0, asked_back: int = 0) -> None:
    """A machine for DIMMs whose guest answers with these codes."""
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
        qemu.ost(id_, 1, plugged)
        qemu.ost(id_, 1, plugged)  # once more
        if plugged == 0:
            qemu.stats_total += size
        return {}

    def device_del(arguments: dict[str, Any]) -> dict[str, Any]:
        id_ = arguments["id"]
        qemu.ost("dimm7", 3, 0x82)  # of another one, late
        qemu.ost(id_, 3, 0x84)
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


def with_virtio_mem(qemu: FakeQemu, *, takes: bool, least: int = 0) -> None:
    """A machine with virtio-mem; the guest goes no lower than ``least``."""
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
                mem["size"] = max(arguments["value"], least)
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
        with pytest.raises(HotplugError, match="refused a DIMM of 256M") as caught:
            await vm.memory.resize(512 * MIB)
        assert caught.value.outcome == "refused"
        assert "still there" not in str(caught.value)
        assert "dimm0" not in qemu.devices
        assert ("object-del", {"id": "dimm0-mem"}) in qemu.sent
        assert vm.live.journal.changes() == []


async def test_a_dimm_that_the_guest_does_not_use_is_taken_back() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_dimms(qemu)
        usual = qemu.answers["device_add"]

        def device_add(arguments: dict[str, Any]) -> Any:
            usual(arguments)
            qemu.stats_total = 256 * MIB
            return {}

        qemu.answers["device_add"] = device_add
        with pytest.raises(HotplugError, match="does not use it"):
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
        assert vm.live.journal.changes() == []


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
