"""Network cards in and out of a QEMU that fails at every step, and of guests that do
not let go, or late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_nics import FakeNics
from fake_qemu import seems_on
from fake_qmp import serving

from qemuctl.errors import (
    CommandError,
    HostError,
    HotplugError,
    QemuctlError,
    SpecError,
    StateError,
)
from qemuctl.hotplug.nics import add, in_spec
from qemuctl.hotplug.nics.results import RemovedNic
from qemuctl.registry import vms
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.scope import Scope
from qemuctl.spec import Nic, Spec
from qemuctl.spec.network import Forward
from qemuctl.vm.vm import Vm

SHORT = 0.2
MAC = "52:54:00:00:00:01"
WRITTEN = Nic(mac=MAC, forward=("2222:22", ":80"))  # type: ignore[arg-type]
NEW = Nic(id="lan", forward=(":81",), link="down")  # type: ignore[arg-type]


def forward(text: str) -> Forward:
    return Forward.model_validate(text)


@pytest.fixture
async def qemu(
    bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FakeNics]:
    """A VM called web that is on, or so it seems, with one card."""
    # Whether this host could start it is no question here.
    monkeypatch.setattr(in_spec, "_check_startable", lambda *_: None)
    monkeypatch.setattr(in_spec, "_check_model", lambda *_: None)
    binary = SimpleNamespace(require_device=lambda *_: None)
    host = SimpleNamespace(binary=binary)
    monkeypatch.setattr(add, "inspect_host", lambda _: host)
    forwards = ["127.0.0.1:2222->22", "127.0.0.1:38080->80"]
    with seems_on(Spec(name="web", nics=(WRITTEN,)), forwards) as paths:
        fake = FakeNics(paths.events)
        ports = (("tcp", "127.0.0.1", 2222, 22), ("tcp", "127.0.0.1", 38080, 80))
        fake.plug("nic0", "net0", *ports)
        async with serving(paths.tools_socket, fake.script):
            yield fake


def recorded(vm: Vm) -> Record:
    record = Record.read(vm.paths.record)
    assert record is not None
    return record


def everything(qemu: FakeNics, vm: Vm) -> Any:
    """All but the numbers of ports that are chosen anew each time."""
    devices, forwards, down = qemu.state()

    def numberless(port: int) -> int:
        return 0 if port >= 40000 else port

    live = {
        id_: sorted((p, a, numberless(n), g) for p, a, n, g in each)
        for id_, each in forwards.items()
    }
    texts = [
        f"{a}:{n}->{g}" + ("/udp" if p == "udp" else "")
        for each in forwards.values()
        for p, a, n, g in each
    ]
    # What others read is what QEMU has.
    assert recorded(vm).forwards == texts
    assert set(recorded(vm).links_down) == down
    return devices, live, down, vm.paths.spec.read_text(), vm.paths.journal.exists()


Change = Callable[[Vm], Awaitable[Any]]
CHANGES: dict[str, tuple[Change, Change]] = {
    "add": (lambda vm: vm.nics.add(NEW), lambda vm: vm.nics.remove("lan")),
    "link": (
        lambda vm: vm.nics.link("nic0", "down"),
        lambda vm: vm.nics.link("nic0", "up"),
    ),
    "forward": (
        lambda vm: vm.nics.add_forward(forward(":99")),
        lambda vm: vm.nics.remove_forward(forward(":99")),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_that_is_cut_off_at_any_step_is_whole_or_nothing(
    qemu: FakeNics, vm: Vm, name: str
) -> None:
    there, back = CHANGES[name]
    before = everything(qemu, vm)
    await there(vm)
    steps = list(qemu.asked)
    whole = everything(qemu, vm)
    assert whole != before
    await back(vm)
    assert everything(qemu, vm) == before
    for step in range(len(steps)):
        for moment in ("before", "after"):
            qemu.forget()
            qemu.faults[step] = moment
            try:
                await there(vm)
            except QemuctlError:
                assert everything(qemu, vm) == before, (steps[step], moment)
                await there(vm)
            assert everything(qemu, vm) == whole, (steps[step], moment)
            await back(vm)
            assert everything(qemu, vm) == before


@pytest.mark.parametrize("name", CHANGES)
async def test_the_way_back_that_is_cut_off_at_any_step_is_ended_by_the_next(
    qemu: FakeNics, vm: Vm, name: str
) -> None:
    there, back = CHANGES[name]
    before = everything(qemu, vm)
    await there(vm)
    qemu.forget()
    await back(vm)
    steps = list(qemu.asked)
    for step in range(len(steps)):
        for moment in ("before", "after"):
            await there(vm)
            qemu.forget()
            qemu.faults[step] = moment
            try:
                await back(vm)
            except QemuctlError:
                await back(vm)
            assert everything(qemu, vm) == before, (steps[step], moment)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_that_the_spec_does_not_get_is_taken_back(
    qemu: FakeNics, vm: Vm, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no room on the disk")

    before = everything(qemu, vm)
    with monkeypatch.context() as patch:
        patch.setattr(vms, "write", fails)
        with pytest.raises(OSError, match="no room"):
            await CHANGES[name][0](vm)
    assert everything(qemu, vm) == before


@pytest.mark.parametrize("command", ["netdev_add", "device_add", "set_link"])
async def test_an_add_that_qemu_refuses_leaves_nothing(
    qemu: FakeNics, vm: Vm, command: str
) -> None:
    before = everything(qemu, vm)
    qemu.refuse[command] = ["not today"]
    with pytest.raises(CommandError, match="not today"):
        await vm.nics.add(NEW)
    assert everything(qemu, vm) == before


async def test_a_guest_that_refuses_keeps_its_card(qemu: FakeNics, vm: Vm) -> None:
    before = everything(qemu, vm)
    qemu.guest = "refuses"
    with pytest.raises(HotplugError) as caught:
        await vm.nics.remove("nic0")
    assert (caught.value.outcome, caught.value.exit_status) == ("refused", 1)
    assert everything(qemu, vm) == before


async def test_a_bus_that_cannot_let_go_is_a_refusal_too(
    qemu: FakeNics, vm: Vm
) -> None:
    before = everything(qemu, vm)
    qemu.refuse["device_del"] = ["Bus 'x' does not support hotplugging"]
    with pytest.raises(HotplugError, match="does not support hotplugging") as caught:
        await vm.nics.remove("nic0")
    assert "--config" in (caught.value.hint or "")
    assert caught.value.outcome == "refused"
    assert everything(qemu, vm) == before


async def test_the_backend_goes_only_after_a_card_that_goes_late(
    qemu: FakeNics, vm: Vm
) -> None:
    spec = vm.paths.spec.read_text()
    qemu.guest = "silent"
    with pytest.raises(HotplugError) as caught:
        await vm.nics.remove("nic0", timeout=SHORT)
    assert (caught.value.outcome, caught.value.exit_status) == ("pending", 3)
    assert qemu.netdevs.keys() == {"net0"}
    assert vm.paths.spec.read_text() == spec
    (row,) = await vm.nics.list()
    assert row.leaving
    with pytest.raises(HotplugError, match="not let go"):
        await vm.nics.remove("nic0", timeout=SHORT)
    qemu.release("nic0")
    # Any change ends what is pending; this one, too.
    await vm.nics.add(NEW)
    assert qemu.netdevs.keys() == {"net-lan"}
    assert [nic.id for nic in vms.load("web").nics] == ["lan"]
    assert everything(qemu, vm)[-1] is False


async def test_asking_again_after_a_late_end_tells_that_it_is_done(
    qemu: FakeNics, vm: Vm
) -> None:
    qemu.guest = "silent"
    with pytest.raises(HotplugError):
        await vm.nics.remove("nic0", timeout=SHORT)
    qemu.release("nic0")
    assert await vm.nics.remove("nic0") == RemovedNic(
        id="nic0", live=True, configured=True
    )
    assert qemu.netdevs == {}
    assert recorded(vm).forwards == []
    assert vms.load("web").nics == ()


async def test_an_answer_just_in_time_is_a_removal(qemu: FakeNics, vm: Vm) -> None:
    qemu.guest = "silent"
    release = partial(qemu.release, "nic0", times=3)
    asyncio.get_running_loop().call_later(SHORT, release)
    assert (await vm.nics.remove("nic0", timeout=30)).outcome == "removed"
    assert qemu.netdevs == {}


async def test_the_human_monitors_words_for_a_failure_are_an_error(
    qemu: FakeNics, vm: Vm
) -> None:
    before = everything(qemu, vm)
    qemu.says["hostfwd_add"] = "Invalid host forwarding rule 'x' (Bad guest port)\r\n"
    with pytest.raises(StateError, match="Bad guest port"):
        await vm.nics.add_forward(forward(":99"))
    assert everything(qemu, vm) == before
    qemu.says["hostfwd_remove"] = "host forwarding rule for x not found\r\n"
    with pytest.raises(StateError, match="not found"):
        await vm.nics.remove_forward(forward("2222:22"))
    assert everything(qemu, vm) == before
    # A human monitor that says nothing, and does nothing.
    qemu.says["hostfwd_add"] = ""
    with pytest.raises(StateError, match="has not taken it"):
        await vm.nics.add_forward(forward(":99"))
    assert everything(qemu, vm) == before


async def test_a_host_port_that_is_taken_is_named(qemu: FakeNics, vm: Vm) -> None:
    before = everything(qemu, vm)
    with pytest.raises(StateError, match="tcp port 2222 of 127") as caught:
        await vm.nics.add_forward(forward("2222:5"), scope=Scope.LIVE)
    assert ":PORT" in (caught.value.hint or "")
    with pytest.raises(StateError, match="tcp port 2222 of 127"):
        await vm.nics.add(Nic.model_validate({"forward": ["2222:5"]}), scope=Scope.LIVE)
    with pytest.raises(SpecError, match="two forwards have the same host port"):
        await vm.nics.add_forward(forward("2222:5"))
    assert everything(qemu, vm) == before


async def test_what_makes_no_sense_changes_nothing(qemu: FakeNics, vm: Vm) -> None:
    qemu.netdevs["net-wire"] = {"type": "stream", "forwards": []}
    qemu.devices["wire"] = {
        "driver": "e1000", "bus": "port1", "netdev": "net-wire",
        "mac": "52:54:00:00:00:02",
    }  # fmt: skip
    before = everything(qemu, vm)
    nics = vm.nics
    wrong: list[tuple[Awaitable[Any], type[QemuctlError], str]] = [
        (nics.add(Nic(id="nic0")), StateError, "the id is in use: nic0"),
        (nics.add(Nic(id="wire")), StateError, "the id is in use: wire"),
        (nics.add(Nic(mac=MAC)), StateError, "the MAC address is in use"),
        (nics.add(Nic(mac="52:54:00:00:00:02")), StateError, "MAC address is in use"),
        (nics.add(Nic(type="none")), SpecError, "no card"),
        (nics.add(Nic(model="nonsense")), HostError, "lacks the device 'nonsense'"),
        (nics.add(Nic(model="virtio-rng")), SpecError, "not a network card"),
        (nics.remove("nic7"), StateError, "no such card"),
        (nics.link("nic7", "down"), StateError, "no such card"),
        (nics.add_forward(forward(":1"), id="nic7"), StateError, "no such card"),
        (nics.add_forward(forward(":1"), id="wire"), SpecError, "no forwards"),
        (nics.remove_forward(forward("1:1")), SpecError, "no such forward"),
        (nics.remove_forward(forward("2222:1")), SpecError, "no such forward"),
    ]
    for attempt, error, words in wrong:
        with pytest.raises(error, match=words):
            await attempt
        assert everything(qemu, vm) == before


async def test_one_of_two_like_forwards_must_be_named(qemu: FakeNics, vm: Vm) -> None:
    await vm.nics.add_forward(forward("3333:22"))
    with pytest.raises(SpecError, match="more than one such forward") as caught:
        await vm.nics.remove_forward(forward(":22"))
    assert "127.0.0.1:2222->22" in (caught.value.hint or "")
    done = await vm.nics.remove_forward(forward("3333:22"))
    assert (done.live, done.configured) == (True, True)


async def test_a_free_port_is_removed_by_either_of_its_names(
    qemu: FakeNics, vm: Vm
) -> None:
    done = await vm.nics.remove_forward(forward("38080:80"))
    assert (done.address, done.forward) == ("127.0.0.1:38080->80", ":80")
    (nic,) = vms.load("web").nics
    assert [one.notation for one in nic.forward] == ["2222:22"]


async def test_a_full_machine_says_what_makes_room(qemu: FakeNics, vm: Vm) -> None:
    for number in range(1, 4):
        await vm.nics.add(Nic(id=f"more{number}"))
    before = everything(qemu, vm)
    with pytest.raises(StateError, match="no port is free") as caught:
        await vm.nics.add(Nic())
    assert "hotplug_ports" in (caught.value.hint or "")
    assert everything(qemu, vm) == before
