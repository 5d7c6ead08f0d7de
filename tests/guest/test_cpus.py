"""Another number of processors for a real guest, as the guest itself counts them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from qemuctl.hotplug.cpus import PATIENCE
from qemuctl.hotplug.possible_cpus import POSSIBLE
from qemuctl.vm.attach import attach
from tests.guest.conftest import Home
from tests.guest.moving import state


@pytest.fixture
def busy(shared: Home) -> str:
    """A guest with one processor and room for four, whatever its kernel."""
    if state(shared, "busy") is None:
        cpus = "1,max=4,hypervisor=vmware"
        shared.boot("busy", "--memory", "256M", "--cpus", cpus)
    return "busy"


def nproc(home: Home, name: str) -> int:
    return int(home.text("exec", name, "--", "nproc"))


def threads(home: Home, name: str) -> int:
    return len(json.loads(home.text("qmp", name, "query-cpus-fast")))


def configured(home: Home, name: str) -> int:
    return int(json.loads(home.text("info", name, "--json"))["cpus"])


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--cpus", "5"], 1, "cpu.max"),
        (["--cpus", "5", "--live"], 1, "cpu.max"),
        (["--cpus", "5", "--config"], 1, "cpu.max"),
        (["--cpus", "0"], 2, "not a number of processors"),
        (["--cpus", "-1"], 2, "not a number of processors"),
        (["--cpus", "two"], 2, "valid integer"),
        (["--cpus", "2", "--memory", "2G"], 1, "memory.max"),
    ],
)
def test_nonsense_changes_nothing(
    shared: Home, busy: str, arguments: list[str], status: int, said: str
) -> None:
    before = configured(shared, busy)
    assert said in shared.words("set", busy, *arguments, check=status)
    assert (configured(shared, busy), threads(shared, busy)) == (before, 1)


def test_room_that_the_spec_got_since_comes_with_the_next_start(
    shared: Home, busy: str
) -> None:
    path = shared.path / f"state/vms/{busy}/vm.yaml"
    before = path.read_text()
    path.write_text(before.replace("max: 4", "max: 8"))
    words = shared.words("set", busy, "--cpus", "6", check=1)
    assert "started with room for 4" in words
    assert "--config" in words
    assert shared.text("diff", busy) == "cpu.max: 4 -> 8\n"
    path.write_text(before)


def test_processors_of_the_start_go_too_but_for_the_first(shared: Home) -> None:
    shared.run("create", "many", "--image", "tiny", "--memory", "256M", "--cpus", "3")
    shared.run("start", "many", "--wait", timeout=150)
    assert "3 -> 1, 1 online" in shared.words("set", "many", "--cpus", "1", "--live")
    assert nproc(shared, "many") == threads(shared, "many") == 1
    assert configured(shared, "many") == 3
    shared.run("kill", "many")


def test_processors_come_and_go(shared: Home, busy: str) -> None:
    """One story: under emulation no processor can come after one has gone."""
    try:
        _processors_come(shared, busy)
        _one_that_the_guest_leaves_offline_is_brought_online(shared, busy)
        _processors_go(shared, busy)
        _what_would_end_qemu_is_not_done(shared, busy)
    finally:
        shared.run("rm", "--force", busy)


def _processors_come(shared: Home, busy: str) -> None:
    assert "1 -> 3, 3 online" in shared.words("set", busy, "--cpus", "3")
    assert nproc(shared, busy) == threads(shared, busy) == 3
    assert configured(shared, busy) == 3
    assert shared.text("diff", busy) == ""
    assert "3 -> 4" in shared.words("set", busy, "--cpus", "4", "--live")
    assert nproc(shared, busy) == threads(shared, busy) == 4
    assert configured(shared, busy) == 3
    assert shared.text("diff", busy) == "cpu.count: 4 -> 3\n"
    assert "cpu.count: 4 now, 3 configured" in shared.text("info", busy)
    shown = json.loads(shared.text("diff", busy, "--json"))
    assert shown == {"cpu.count": {"now": "4", "configured": "3"}}


def _one_that_the_guest_leaves_offline_is_brought_online(
    shared: Home, busy: str
) -> None:
    off = "echo 0 >/sys/devices/system/cpu/cpu1/online"
    shared.run("exec", busy, "--", "sh", "-c", off)
    assert nproc(shared, busy) == 3
    assert "4 -> 4, 4 online" in shared.words("set", busy, "--cpus", "4", "--live")
    assert nproc(shared, busy) == 4


def _processors_go(shared: Home, busy: str) -> None:
    async def change() -> None:
        async with await attach(busy) as vm:
            now = await vm.cpus.now()
            assert (now.plugged, now.max) == (4, 4)
            assert now.removable == ("cpu3", "cpu2", "cpu1")
            result = await vm.cpus.resize(3)
            assert (result.before, result.plugged, result.online) == (4, 3, 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEMUCTL_HOME", str(shared.path))
        asyncio.run(change())
    assert nproc(shared, busy) == threads(shared, busy) == 3
    assert "3 -> 1, 1 online" in shared.words("set", busy, "--cpus", "1")
    assert nproc(shared, busy) == threads(shared, busy) == 1
    assert configured(shared, busy) == 1


def _what_would_end_qemu_is_not_done(shared: Home, busy: str) -> None:
    words = shared.words("set", busy, "--cpus", "2", check=1)
    assert "under emulation" in words
    assert "--config" in words
    assert nproc(shared, busy) == 1
    assert configured(shared, busy) == 1


def test_a_kernel_without_room_for_another_is_not_offered_one(shared: Home) -> None:
    """Under emulation, old kernels have room and new ones have none."""
    plug = ("set", "plain", "--cpus", "2")
    shared.run(
        "create", "plain", "--image", "tiny", "--memory", "256M", "--cpus", "1,max=2"
    )
    shared.run("start", "plain", "--wait", timeout=150)
    possible = shared.text("exec", "plain", "--", "cat", POSSIBLE).strip()
    if possible == "0-1":
        assert "1 -> 2, 2 online" in shared.words(*plug)
        assert nproc(shared, "plain") == 2
    else:
        assert possible == "0"
        begun = time.monotonic()
        words = shared.words(*plug, check=1)
        assert time.monotonic() - begun < PATIENCE
        assert "its kernel has room for 1" in words
        assert "qemuctl set plain --cpus 2 --config" in words
        assert "cpu.hypervisor" in words
        assert (threads(shared, "plain"), configured(shared, "plain")) == (1, 1)
    shared.run("kill", "plain")


def test_a_guest_without_an_agent_is_changed_by_acpi_alone(here: Home) -> None:
    path = here.path / "mute.yaml"
    path.write_text(
        "name: mute\nimage: tiny\nmemory: 256M\nagent: false\n"
        "cpu: {count: 1, max: 2, hypervisor: vmware}\n"
    )
    here.run("create", "-f", path)
    here.run("start", "mute")
    assert "neither agent nor" in here.words("set", "mute", "--cpus", "2", check=1)
    assert threads(here, "mute") == 1
    here.run("wait", "mute", "--for", "serial:tiny: ready")
    assert "1 -> 2\n" in here.words("set", "mute", "--cpus", "2")
    assert threads(here, "mute") == 2
    here.run("kill", "mute")
