"""Another amount of memory for a real guest, as the guest itself counts it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from qemuctl.errors import HotplugError
from qemuctl.hotplug.memory import devices
from qemuctl.hotplug.memory.choose import Choice
from qemuctl.vm.attach import attach
from tests.guest.conftest import Home
from tests.guest.moving import state

MIB = 1024
ROOM = "256M,max=1G,slots=3"


@pytest.fixture(scope="module")
def grows(shared: Home) -> str:
    """A guest of 256M with room for 1G."""
    return shared.boot("grows", "--memory", ROOM)


@pytest.fixture
def dimms(shared: Home) -> str:
    """The same, whose guest has no driver for virtio-mem, with its memory at start."""
    name, made = "dimms", state(shared, "dimms") is not None
    if made and (configured(shared, name) != 256 or shared.text("diff", name)):
        shared.run("rm", "--force", name)
        made = False
    if not made:
        shared.boot(name, "--memory", ROOM)
        remove = 'rm $(find /lib/modules -name "virtio_mem.ko*")'
        shared.run("exec", name, "--", "sh", "-c", remove)
    return name


def total(home: Home, name: str) -> int:
    """MemTotal of the guest, in KiB."""
    line = home.text("exec", name, "--", "grep", "MemTotal", "/proc/meminfo")
    return int(line.split()[1])


def spec(home: Home, name: str) -> str:
    return home.path.joinpath(f"state/vms/{name}/vm.yaml").read_text()


def configured(home: Home, name: str) -> int:
    """Memory by its spec, in MiB."""
    return int(json.loads(home.text("info", name, "--json"))["memory"]) >> 20


def balloon(home: Home, name: str) -> dict[str, Any]:
    return dict(json.loads(home.text("balloon", name, "--json")))


def test_memory_grows_and_shrinks_by_what_can_do_it(shared: Home, grows: str) -> None:
    start = total(shared, grows)
    words = shared.words("set", grows, "--memory", "512M")
    assert "256M -> 512M by virtio-mem (more than the 256M" in words
    assert total(shared, grows) - start > 250 * MIB
    assert configured(shared, grows) == 512
    assert shared.text("diff", grows) == ""

    shared.run("set", grows, "--memory", "384M", "--live")
    assert 120 * MIB < total(shared, grows) - start < 135 * MIB
    assert configured(shared, grows) == 512
    assert shared.text("diff", grows) == "memory.size: 384M -> 512M\n"
    assert "memory.size: 384M now, 512M configured" in shared.text("info", grows)

    words = shared.words("set", grows, "--memory", "210M", "--live")
    assert "384M -> 210M by virtio-mem and balloon (no more than" in words
    assert abs(total(shared, grows) - start + 46 * MIB) < 2 * MIB
    shown = json.loads(shared.text("set", grows, "--memory", "256M", "--json"))
    assert shown[0]["before"] == 210 * MIB * 1024
    assert shown[0]["after"] == 256 * MIB * 1024
    assert (shown[0]["what"], shown[0]["outcome"]) == ("memory", "done")
    assert abs(total(shared, grows) - start) < 2 * MIB
    assert "256M already" in shared.words("set", grows, "--memory", "256M")


def test_the_balloon_says_what_was_requested_and_what_is(
    shared: Home, grows: str
) -> None:
    shared.run("balloon", grows, "220M")
    now = balloon(shared, grows)
    assert now["requested_bytes"] == now["actual_bytes"] == 220 * MIB * 1024
    assert now["total_bytes"] == 256 * MIB * 1024
    assert now["has_driver"] is True
    assert 0 < now["guest"]["free_bytes"] < now["guest"]["total_bytes"]
    assert now["guest"]["minor_faults"] > 0
    asked = json.loads(shared.text("balloon", grows, "240M", "--no-wait", "--json"))
    assert asked["requested_bytes"] == 240 * MIB * 1024
    assert asked["guest"] is None
    assert "requested:" in shared.text("balloon", grows, "256M")
    assert balloon(shared, grows)["actual_bytes"] == 256 * MIB * 1024


def test_what_the_guest_uses_is_not_taken(shared: Home, grows: str) -> None:
    before = balloon(shared, grows)
    for command in (("balloon", grows, "20M"), ("set", grows, "--memory", "20M")):
        words = shared.words(*command, check=1)
        assert "to spare" in words
        assert "would do" in words
    assert balloon(shared, grows)["actual_bytes"] == before["actual_bytes"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--memory", "2G"], 1, "memory.max"),
        (["--memory", "2G", "--live"], 1, "memory.max"),
        (["--memory", "301M"], 1, "300M or 302M"),
        (["--memory", "1000"], 2, "MiB"),
        (["--memory", "much"], 2, "not a size"),
        (["--memory", "-1G"], 2, "not a size"),
        ([], 2, "nothing to set"),
        (["--memory", "1G", "--live", "--both"], 2, "only one"),
    ],
)
def test_nonsense_changes_nothing(
    shared: Home, grows: str, arguments: list[str], status: int, said: str
) -> None:
    before = spec(shared, grows), balloon(shared, grows)["actual_bytes"]
    assert said in shared.words("set", grows, *arguments, check=status)
    assert (spec(shared, grows), balloon(shared, grows)["actual_bytes"]) == before


def test_a_paused_guest_hears_nothing(shared: Home, grows: str) -> None:
    shared.run("set", grows, "--memory", "256M")
    before = balloon(shared, grows)
    shared.run("pause", grows)
    for command in (("set", grows, "--memory", "300M"), ("balloon", grows, "220M")):
        words = shared.words(*command, check=1)
        assert "the VM is paused" in words
        assert f"qemuctl resume {grows}" in words
    assert balloon(shared, grows)["actual_bytes"] == before["actual_bytes"]
    shared.run("set", grows, "--memory", "300M", "--config")
    assert shared.text("diff", grows) == "memory.size: 256M -> 300M\n"
    shared.run("set", grows, "--memory", "256M", "--config")
    shared.run("resume", grows)


# The command line; Ctrl-C reaches it between the plug and the guest's answer, once
# a script in the guest has ended.
CUT_OFF = """
import asyncio, os, signal, sys
from qemuctl.hotplug.memory import devices

script = sys.argv.pop(1)

async def accepted(vm, *_):
    assert (await vm.agent.run(["sh", "-c", script])).ok
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()

devices.accepted = accepted
from qemuctl.cli.main import main
main()
"""


def cut_off(home: Home, name: str, script: str) -> tuple[dict[str, Any], str]:
    """What `set --memory 384M`, interrupted, gives as JSON and says."""
    done = subprocess.run(
        [sys.executable, "-c", CUT_OFF, script, "set", name, "--memory", "384M",
         "--json"],
        env=home.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    (change,) = json.loads(done.stdout)
    assert (change["what"], change["outcome"]) == ("memory", "cut off")
    assert configured(home, name) == 256
    return change, done.stderr


# Waits until the guest has taken a DIMM into use, and fills it with inodes: pages of
# the kernel's own stay where they are.
HOLD = """
until [ $(grep -lx online /sys/devices/system/memory/*/state | wc -l) -gt 2 ]
do sleep 0.1; done
mkdir /k; cd /k; seq 12000 | xargs mkdir
"""


def test_a_dimm_that_is_cut_off_goes_again(shared: Home, dimms: str) -> None:
    """A guest that keeps pages of its kernel out of new memory can give it back."""
    policy = "/sys/devices/system/memory/auto_online_blocks"
    shared.run("exec", dimms, "--", "sh", "-c", f"echo online_movable >{policy}")
    change, words = cut_off(shared, dimms, "true")
    assert change["after"] == change["before"] == 256 * MIB * 1024
    assert words == ""
    now = balloon(shared, dimms)
    assert now["actual_bytes"] == now["requested_bytes"] == 256 * MIB * 1024
    assert shared.text("diff", dimms) == ""
    assert not (shared.path / f"state/vms/{dimms}/journal.json").exists()
    shared.run("exec", dimms, "--", "sh", "-c", f"echo online >{policy}")


def test_a_dimm_that_the_guest_keeps_is_told(shared: Home, dimms: str) -> None:
    change, words = cut_off(shared, dimms, HOLD)
    assert change["before"] == 256 * MIB * 1024
    assert change["after"] == 384 * MIB * 1024
    assert "interrupted: memory: 256M -> 384M; the guest has not" in words
    assert shared.text("diff", dimms) == "memory.size: 384M -> 256M\n"
    words = shared.words("set", dimms, "--memory", "256M", check=1)
    assert "did not let go of it" in words
    assert "qemuctl balloon" in words
    assert configured(shared, dimms) == 256
    assert shared.text("diff", dimms) == "memory.size: 384M -> 256M\n"


def test_dimms_come_where_virtio_mem_is_not_taken(shared: Home, dimms: str) -> None:
    start = total(shared, dimms)
    words = shared.words("set", dimms, "--memory", "384M")
    assert "256M -> 384M by DIMM (its guest takes no virtio-mem)" in words
    assert 120 * MIB < total(shared, dimms) - start < 135 * MIB
    words = shared.words("set", dimms, "--memory", "340M", "--live")
    assert "by balloon" in words
    assert 80 * MIB < total(shared, dimms) - start < 90 * MIB
    words = shared.words("set", dimms, "--memory", "512M")
    assert "340M -> 512M by DIMM and balloon (it has DIMMs already)" in words
    assert 245 * MIB < total(shared, dimms) - start < 265 * MIB
    assert configured(shared, dimms) == 512
    assert "steps of 128M" in shared.words("set", dimms, "--memory", "600M", check=1)


def test_a_dimm_that_no_guest_can_use_is_taken_back(
    shared: Home, dimms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux says yes to it by ACPI, and then does not take it."""
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    monkeypatch.setattr(devices, "_ANSWER", 6.0)

    async def plug() -> None:
        async with await attach(dimms) as vm, vm.bus.changing():
            before = await vm.memory.now()
            size = 100 * MIB * 1024
            choice = Choice(why="", new_dimm_bytes=size, balloon_bytes=0)
            with pytest.raises(HotplugError, match="does not use a DIMM") as caught:
                await vm.memory._devices.apply(choice, 30.0, before)
            assert caught.value.outcome == "refused"
            assert "still there" not in str(caught.value)
            assert (await vm.memory.now()).dimms == before.dimms

    asyncio.run(plug())


def test_a_vm_that_is_off_is_only_configured(here: Home) -> None:
    here.run("create", "a", "--image", "tiny", "--memory", "256M,max=1G")
    assert "next start" in here.words("set", "a", "--memory", "300M", "--cpus", "2")
    shown = json.loads(here.text("set", "a", "--cpus", "3", "--json"))
    assert shown == [
        {"what": "cpus", "before": 2, "after": 3, "by": [], "outcome": "configured"}
    ]
    written = here.path.joinpath("state/vms/a/vm.yaml").read_text()
    assert "size: 300M" in written
    assert here.text("diff", "a") == ""
    assert "the VM is off" in here.words(
        "set", "a", "--memory", "1G", "--live", check=1
    )
    assert "the VM is off" in here.words("balloon", "a", check=1)
    assert "memory.max" in here.words("set", "a", "--memory", "2G", check=1)
    assert "no such VM" in here.words("set", "b", "--memory", "2G", check=1)


def test_without_guest_or_balloon_it_says_what_is_missing(
    here: Home, boot_sector: Any
) -> None:
    """Firmware and 512 bytes: nobody who could hear of memory."""
    path = here.path / "bare.yaml"
    path.write_text(
        "name: bare\nmemory: {size: 64M, max: 1G}\nballoon: false\n"
        "cpu: {count: 1, max: 2}\n"
        f"disks: [{{path: {json.dumps(str(boot_sector))}}}]\n"
    )
    here.run("create", "-f", path)
    here.run("start", "bare")
    assert "balloon: true" in here.words("balloon", "bare", check=1)
    for flag in (("--memory", "512M"), ("--cpus", "2")):
        words = here.words("set", "bare", *flag, check=1)
        assert "neither agent nor balloon driver" in words
        assert "--config" in words
    assert here.text("diff", "bare") == ""
    here.run("kill", "bare")
