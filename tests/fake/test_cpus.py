"""Another number of processors, with a QEMU and a guest that give odd answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_vm import Dropped, FakeQemu, Refused, fake_vm

from qemuctl.cli import resources
from qemuctl.errors import HotplugError, SpecError, StateError
from qemuctl.vm.vm import Vm

SPEC = "name: fake\ncpu:\n  count: 1\n  max: 3\n"


def with_cpus(
    qemu: FakeQemu,
    *,
    plugged: int | None = 0,
    asked_back: int | None = 0,
    start: int = 1,
) -> None:
    """A machine for three processors whose guest answers with these codes, or not."""
    there = {n: f"/machine/unattached/device[{n}]" for n in range(start)}

    def places(_: dict[str, Any]) -> Any:
        return [
            {"type": "max-x86_64-cpu", "vcpus-count": 1,
             "props": {"core-id": n, "socket-id": 0, "thread-id": 0},
             **({"qom-path": there[n]} if n in there else {})}
            for n in (2, 1, 0)
        ]  # fmt: skip

    def device_add(arguments: dict[str, Any]) -> Any:
        id_ = arguments["id"]
        there[arguments["core-id"]] = f"/machine/peripheral/{id_}"
        qemu.devices[id_] = arguments["driver"]
        if plugged is not None:
            qemu.ost(id_, 1, plugged)
        return {}

    def device_del(arguments: dict[str, Any]) -> Any:
        id_ = arguments["id"]
        if asked_back == 0:
            gone = next(n for n, path in there.items() if path.endswith(id_))
            del there[gone]
            qemu.devices.pop(id_, None)
            if id_.startswith("/"):
                qemu.event("DEVICE_DELETED", path=f"{id_}/lapic")
                return {}
            qemu.event("DEVICE_DELETED", path=f"/machine/peripheral/{id_}/lapic")
            qemu.event("DEVICE_DELETED", device=id_, path=f"/machine/peripheral/{id_}")
        elif asked_back is not None:
            qemu.ost(id_, 3, asked_back)
        return {}

    usual = qemu.answers["qom-list"]

    def qom_list(arguments: dict[str, Any]) -> Any:
        path = arguments["path"]
        if path.startswith("/machine/unattached/") and path not in there.values():
            raise Refused(f"Device '{path}' not found")
        return usual(arguments)

    qemu.answers |= {
        "qom-list": qom_list,
        "query-hotpluggable-cpus": places,
        "query-cpus-fast": lambda _: [
            {"cpu-index": n, "thread-id": 1} for n in range(len(there))
        ],
        "device_add": device_add,
        "device_del": device_del,
    }


async def count(vm: Vm) -> int:
    return (await vm.cpus.now()).plugged


async def test_processors_come_in_their_order_and_go_the_other_way() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu)
        change = await vm.cpus.resize(3)
        assert (change.before, change.plugged, change.online) == (1, 3, None)
        cores = [a["core-id"] for name, a in qemu.sent if name == "device_add"]
        assert cores == [1, 2]
        assert (await vm.cpus.now()).removable == ("cpu2", "cpu1")
        await vm.cpus.resize(2)
        assert (await vm.cpus.now()).removable == ("cpu1",)


@pytest.mark.parametrize("status", [1, 2, 0x80, None])
async def test_a_processor_that_the_guest_refuses_is_taken_back(
    status: int | None,
) -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, plugged=status)
        said = "did not answer" if status is None else "did not accept"
        with pytest.raises(HotplugError, match=said) as caught:
            await vm.cpus.resize(2, timeout=0.3)
        assert caught.value.outcome == "refused"
        assert await count(vm) == 1
        assert vm.bus.journal.changes() == []


async def test_a_refusal_of_the_second_takes_back_the_first() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu)
        usual = qemu.ost
        qemu.ost = lambda id_, source, status: usual(  # type: ignore[method-assign]
            id_, source, 0x80 if id_ == "cpu2" else status
        )
        with pytest.raises(HotplugError, match="did not accept"):
            await vm.cpus.resize(3, timeout=30)
        assert await count(vm) == 1


async def test_a_processor_without_any_answer_is_pending() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, plugged=None, asked_back=None)
        with pytest.raises(HotplugError, match=r"did not answer .*still to go") as why:
            await vm.cpus.resize(2, timeout=0.3)
        assert why.value.outcome == "pending"
        assert why.value.exit_status == 3


@pytest.mark.parametrize("silent", ["cpu1", "cpu2"])
async def test_processors_that_are_cut_off_go_again(silent: str) -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu)
        usual = qemu.ost
        qemu.ost = lambda id_, source, status: (  # type: ignore[method-assign]
            None if id_ == silent else usual(id_, source, status)
        )
        task = asyncio.create_task(vm.cpus.resize(3))
        async with asyncio.timeout(60):
            while silent not in qemu.devices:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # Ctrl-C once more
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await count(vm) == 1
        assert vm.bus.journal.changes() == []


async def test_a_refusal_tells_of_those_that_stay() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, asked_back=None)
        usual = qemu.ost
        qemu.ost = lambda id_, source, status: usual(  # type: ignore[method-assign]
            id_, source, 0x80 if id_ == "cpu2" else status
        )
        with pytest.raises(HotplugError, match=r"cpu2 is still to go.*: cpu1") as why:
            await vm.cpus.resize(3, timeout=0.3)
        assert why.value.outcome == "pending"


async def test_a_processor_that_qemu_itself_keeps_is_refused_in_words() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, start=2)

        def device_del(_: dict[str, Any]) -> Any:
            raise Refused("no hot unplug for this one")

        qemu.answers["device_del"] = device_del
        with pytest.raises(HotplugError, match="no hot unplug for this") as caught:
            await vm.cpus.resize(1)
        assert caught.value.outcome == "refused"
        assert "cannot be taken out of fake" in str(caught.value)


async def test_a_change_is_told_as_data_also_where_it_fails() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, asked_back=None)
        changes: list[dict[str, Any]] = []
        await resources._cpus_live(vm, 2, 5.0, changes)
        with pytest.raises(HotplugError):
            await resources._cpus_live(vm, 1, 0.3, changes)
    assert changes[0] == {
        "what": "cpus", "before": 1, "after": 2, "online": None, "by": ["hot plug"],
        "outcome": "done", "configured": False,
    }  # fmt: skip
    assert (changes[1]["outcome"], changes[1]["after"]) == ("pending", 2)


@pytest.mark.parametrize("status", [0x80, 0x81, 0x82, 0x83])
async def test_a_guest_that_keeps_a_processor_is_an_error(status: int) -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, asked_back=status)
        await vm.cpus.resize(2)
        with pytest.raises(HotplugError, match=r"did not let go of .* cpu1: it has 2"):
            await vm.cpus.resize(1)
        assert vm.bus.journal.changes() == []


async def test_a_guest_that_says_nothing_leaves_it_pending() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, asked_back=None)
        await vm.cpus.resize(2)
        with pytest.raises(HotplugError, match=r"still has .* cpu1") as caught:
            await vm.cpus.resize(1, timeout=0.2)
        assert caught.value.exit_status == 3
        assert [c.device for c in vm.bus.journal.changes()] == ["cpu1"]


async def test_a_lost_reply_to_a_plug_is_not_an_error_when_it_is_there() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu)
        usual = qemu.answers["device_add"]

        def device_add(arguments: dict[str, Any]) -> Any:
            usual(arguments)
            raise Dropped

        qemu.answers["device_add"] = device_add
        assert (await vm.cpus.resize(2)).plugged == 2


async def test_what_is_not_possible_sends_nothing() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu)
        for number, key in ((4, "cpu.max"), (0, "cpu.count")):
            with pytest.raises(SpecError) as caught:
                await vm.cpus.resize(number)
            assert caught.value.key == key
        qemu.has_driver = False
        with pytest.raises(StateError, match="neither agent nor balloon driver"):
            await vm.cpus.resize(2)
        qemu.answers["query-status"] = lambda _: {"status": "paused", "running": False}
        with pytest.raises(StateError, match="paused"):
            await vm.cpus.resize(2)
        assert "device_add" not in qemu.names()


async def test_those_of_the_start_go_last_and_the_first_stays() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, start=2)
        await vm.cpus.resize(3)
        second = "/machine/unattached/device[1]"
        assert (await vm.cpus.now()).removable == ("cpu1", second)
        await vm.cpus.resize(1)
        asked = [a["id"] for name, a in qemu.sent if name == "device_del"]
        assert asked == ["cpu1", second]
        with pytest.raises(SpecError):
            await vm.cpus.resize(0)


async def test_one_of_the_start_that_the_guest_keeps_is_an_error() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, start=2, asked_back=0x82)
        with pytest.raises(HotplugError, match=r"did not let go of .*: it has 2"):
            await vm.cpus.resize(1)


async def test_where_no_place_is_known_none_goes() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu, start=2)
        qemu.answers["query-hotpluggable-cpus"] = lambda _: []
        with pytest.raises(SpecError, match="was started with 2, which stay"):
            await vm.cpus.resize(1)


async def test_under_emulation_none_comes_after_one_has_gone() -> None:
    async with fake_vm(SPEC) as (vm, qemu):
        with_cpus(qemu)
        await vm.cpus.resize(2)
        await vm.cpus.resize(1)
        qemu.sent.clear()
        with pytest.raises(StateError, match="QEMU would end"):
            await vm.cpus.resize(2)
        assert "device_add" not in qemu.names()
