"""Numbers of real guests: what the guest does is what is shown; nothing hangs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

import qemuctl
from qemuctl.paths import VmPaths
from qemuctl.vm.balloon_stats import guest_memory
from qemuctl.vm.board import Board
from tests.guest.conftest import Home

pytestmark = pytest.mark.timeout(180)
MIB = 1024 * 1024
Until = Callable[..., Any]


def sh(home: Home, script: str) -> str:
    return home.text("exec", "web", "--", "sh", "-c", script)


def stats(home: Home, *options: str) -> dict[str, Any]:
    (line,) = home.text("stats", "web", "--json", *options).splitlines()
    return dict(json.loads(line))


def facts(home: Home) -> dict[str, Any]:
    return dict(json.loads(home.text("info", "web", "--json")))


@contextmanager
def stopped_qemu(home: Home) -> Iterator[None]:
    """The VM's QEMU does nothing, as if it were stuck."""
    process = qemuctl_process(home)
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


def qemuctl_process(home: Home) -> Any:
    from qemuctl.vm.record import Record

    record = Record.read(home.path / "state" / "vms" / "web" / "process.json")
    assert record is not None
    return record.qemu


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """The block takes no longer, the start of Python included."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


# -- stats ---------------------------------------------------------------------------


def test_a_busy_guest_takes_a_core_and_an_idle_one_next_to_nothing(
    shared: Home, web: str
) -> None:
    idle = stats(shared)
    assert idle["state"] == "running"
    assert idle["rates"]["cpu_share"] < 0.5
    sh(shared, "timeout 6 sh -c 'while :; do :; done' >/dev/null 2>&1 &")
    busy = stats(shared, "--interval", "2s")["rates"]
    (vcpu,) = busy["vcpus"]
    assert 0.6 < vcpu["cpu_share"] < 1.1
    assert vcpu["cpu_share"] <= busy["cpu_share"] + 0.02
    assert busy["host_share"] < busy["cpu_share"]


def test_ten_megabytes_written_in_the_guest_are_seen(shared: Home, web: str) -> None:
    before = stats(shared)
    with shared.popen("stats", web, "--json", "--count", "8", "--interval", "500ms",
                      stdout=-1) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        # Whoever looks does not keep the agent from others.
        with limit(2.5):
            sh(shared, "dd if=/dev/zero of=/dev/vda bs=1M count=10 conv=fsync 2>&1")
        sh(shared, "dd if=/dev/vda of=/dev/null bs=1M skip=20 count=5 2>&1")
        samples = [json.loads(line) for line in process.stdout]
    assert process.wait() == 0
    (first,), (last,) = before["disks"], samples[-1]["disks"]
    assert (first["id"], last["id"]) == ("disk0", "disk0")
    written = last["written_bytes"] - first["written_bytes"]
    assert 10 * MIB <= written < 11 * MIB
    assert last["write_operations"] > first["write_operations"]
    assert last["flush_operations"] > first["flush_operations"]
    assert last["read_bytes"] - first["read_bytes"] >= 5 * MIB
    speeds = [x["rates"]["disks"][0]["written_bytes_per_second"] for x in samples]
    assert max(speeds) > MIB


def test_what_the_guest_sends_is_counted_by_its_agent(shared: Home, web: str) -> None:
    before = stats(shared)["nics"]
    sh(shared, "ping -c 5 -i 0.1 -s 1000 10.0.2.2")
    after = stats(shared)["nics"]
    assert [nic["id"] for nic in after] == ["eth0"]
    assert after[0]["sent_bytes"] - before[0]["sent_bytes"] >= 5000
    assert after[0]["received_packets"] - before[0]["received_packets"] >= 5


def test_memory_that_the_guest_uses_is_told_by_its_balloon(
    shared: Home, web: str, until: Until
) -> None:
    before = stats(shared)["memory"]
    assert before["configured_bytes"] == before["actual_bytes"] == 384 * MIB
    assert 0 < before["proportional_bytes"] <= before["resident_bytes"] + MIB
    assert 10 * MIB < before["guest_used_bytes"] < 384 * MIB
    sh(shared, "dd if=/dev/zero of=/tmp/fill bs=1M count=60 2>&1")
    more = before["guest_used_bytes"] + 50 * MIB
    # The driver is asked every few seconds.
    until(lambda: stats(shared)["memory"]["guest_used_bytes"] > more, 20)
    sh(shared, "rm /tmp/fill")


def test_for_people_there_is_a_line_for_each_device(shared: Home, web: str) -> None:
    text = shared.text("stats", web)
    assert "state:" in text
    assert "384M configured" in text
    assert "disk0: read" in text
    assert "eth0: received" in text
    assert text.count("name:") == 1
    assert shared.text("stats", web, "--count", "2").count("name:") == 2


def test_a_paused_vm_has_numbers_and_its_agent_is_not_asked(
    shared: Home, web: str
) -> None:
    shared.run("pause", web)
    try:
        with limit(4):
            sample = stats(shared)
        assert sample["state"] == "paused"
        assert sample["rates"]["vcpus"][0]["cpu_share"] < 0.05
        assert sample["nics"] is None
        assert sample["disks"]
        with limit(2):
            assert facts(shared)["guest"] is None
    finally:
        shared.run("resume", web)


def test_a_stuck_qemu_is_told_and_nothing_hangs(shared: Home, web: str) -> None:
    with stopped_qemu(shared):
        with limit(6):
            sample = stats(shared)
        assert (sample["state"], sample["disks"]) == ("unresponsive", None)
        assert sample["memory"]["resident_bytes"] > 0
        with limit(3):
            assert "unresponsive" in shared.text("info", web)
        with limit(6):
            table = shared.text("top", "--count", "2")
        assert table.count("unresponsive") == 2
    assert stats(shared)["state"] == "running"


def test_a_vm_that_cannot_be_measured_says_why(shared: Home, web: str) -> None:
    shared.run("create", "idle", "--memory", "64M")
    words = shared.words("stats", "idle", check=1)
    assert "cannot measure idle: the VM is off" in words
    assert "qemuctl start idle" in words
    assert "no such VM: wob" in shared.words("stats", "wob", check=1)
    for wrong in (["--interval", "soon"], ["--interval", "0"], ["--count", "0"]):
        shared.run("stats", web, *wrong, check=2)
    shared.run("rm", "idle")


# -- info ----------------------------------------------------------------------------


def test_info_shows_what_the_guest_tells(shared: Home, web: str) -> None:
    guest = facts(shared)["guest"]
    assert "tiny" in guest["os"]
    assert guest["kernel"] == sh(shared, "uname -r").strip()
    assert (guest["host_name"], guest["architecture"]) == ("tiny", "x86_64")
    card = next(x for x in guest["interfaces"] if x["name"] == "eth0")
    assert "10.0.2.15/24" in card["addresses"]
    assert guest["users"] == []
    text = shared.text("info", web)
    assert "hostname:" in text
    assert "eth0: 10.0.2.15/24" in text


def test_info_takes_two_seconds_when_the_agent_hangs(
    shared: Home, web: str, until: Until
) -> None:
    script = (
        "sleep 1; kill -STOP $(pidof qemu-ga); sleep 10; kill -CONT $(pidof qemu-ga)"
    )
    sh(shared, f"({script}) >/dev/null 2>&1 &")

    def silent() -> bool:
        with limit(2):
            return bool(facts(shared)["guest"] == "the agent does not answer")

    until(silent, 8)
    assert re.search("guest: +the agent does not answer", shared.text("info", web))
    with limit(5):
        assert stats(shared)["nics"] is None
    until(lambda: isinstance(facts(shared)["guest"], dict), 30)


# -- top -----------------------------------------------------------------------------


def test_top_has_a_line_for_each_sample_and_vms_come_and_go(
    shared: Home, web: str, boot_sector: Path, until: Until
) -> None:
    disk = boot_sector.with_name("sector.raw")
    boot_sector.rename(disk)
    shared.run("create", "sector", "--memory", "16M", "--nic", "none",
               "--disk", f"path={disk},format=raw,readonly=true")  # fmt: skip
    with shared.popen("top", "--json", "--interval", "300ms", stdout=-1) as process:
        assert process.stdout is not None

        def sample() -> dict[str, Any]:
            assert process.stdout is not None
            found = json.loads(process.stdout.readline())
            return {vm["name"]: vm for vm in found["vms"]}

        first = sample()
        assert list(first) == ["web"]
        assert first["web"]["rates"]["disks"][0]["id"] == "disk0"
        shared.run("start", "sector")
        until(lambda: "sector" in sample())
        with limit(3):
            assert "running" in shared.text("qmp", "sector", "query-status")
        until(lambda: sample()["sector"]["state"] == "running")
        # No driver, no agent: nobody knows, and nobody invents.
        late = sample()["sector"]
        assert late["memory"]["guest"] is None
        assert late["nics"] is None
        assert late["disks"][0]["read_bytes"] > 0
        until(lambda: sample()["web"]["rates"]["nics"], 20)
        shared.run("kill", "sector")
        until(lambda: "sector" not in sample())
        process.terminate()
        assert process.wait(10) == 143


def test_top_of_nothing_and_for_a_pipe(here: Home) -> None:
    assert here.text("top", "--count", "1").split() == [
        "NAME", "STATE", "CPU", "HOST", "VCPUS", "MEMORY", "GUEST", "RES", "PSS",
        "READ/s", "WRITE/s", "OPS/s", "RX/s", "TX/s",
    ]  # fmt: skip
    assert json.loads(here.text("top", "--count", "1", "--json"))["vms"] == []


def test_top_on_a_terminal_is_live_and_ends_with_ctrl_c(shared: Home, web: str) -> None:
    argv = shared.command("top", "--interval", "200ms")
    terminal = pexpect.spawn(
        argv[0], argv[1:], env=shared.env | {"COLUMNS": "80"}, timeout=15
    )
    for _ in range(3):
        terminal.expect("NAME")
        terminal.expect("web +running")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    assert b"\x1b[?25h" in terminal.before  # the cursor is back
    assert b"Traceback" not in terminal.before
    terminal.close()
    assert terminal.exitstatus == 130


def test_top_does_without_a_monitor_that_another_client_holds(
    shared: Home, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    run = Path(json.loads(shared.text("info", web, "--json"))["sockets"])
    paths = VmPaths(VmPaths.of(web).state, run)
    for held in (paths.owner_socket, paths.tools_socket):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(held))
            assert client.recv(10)
            sample = stats(shared)
            assert (sample["state"], len(sample["disks"])) == ("running", 1)
            table = json.loads(shared.text("top", "--json", "--count", "1"))
            assert table["vms"][0]["state"] == "running"


async def test_a_stuck_vm_takes_few_places_in_the_queue(
    shared: Home, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    async with Board() as board:
        await board.look()
        with stopped_qemu(shared):
            for _ in range(100):
                await board.look()
            (row,) = await board.look()
            assert row.sample.state is qemuctl.State.UNRESPONSIVE
            # A command that comes now still finds a place, and waits.
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                run = Path(qemuctl_run(shared))
                client.connect(str(run / "tools.qmp"))
        for _ in range(100):
            state = (await board.look())[0].sample.state
            if state is qemuctl.State.RUNNING:
                return
            await asyncio.sleep(0.05)
        pytest.fail("it never answered again")


def qemuctl_run(home: Home) -> str:
    record = json.loads(
        (home.path / "state" / "vms" / "web" / "process.json").read_text()
    )
    return str(record["run"])


# -- the library ---------------------------------------------------------------------


@pytest.mark.usefixtures("home", "qemu")
async def test_the_owner_of_a_vm_samples_it_on_its_own_monitor(
    boot_sector: Path,
) -> None:
    spec = qemuctl.Spec.model_validate(
        {"name": "own", "memory": "16M", "cpu": 2, "nics": [],
         "disks": [{"path": str(boot_sector), "format": "raw"}]}
    )  # fmt: skip
    async with qemuctl.launch(spec) as vm:
        await vm.wait_console("ok", timeout=30)
        assert vm.connected
        sample = await vm.stats.sample()
        assert [vcpu.index for vcpu in sample.vcpus] == [0, 1]
        assert sample.memory.configured_bytes == 16 * MIB
        assert sample.memory.guest is None
        assert await guest_memory(vm) is None
        assert sample.disks is not None
        assert sample.disks[0].read_bytes >= 512
        async for later, rates in vm.stats.watch(0.2):
            if rates is not None:
                assert later.pid == sample.pid
                break
        await vm.power.kill()
        await vm.wait_exit()
        with pytest.raises(qemuctl.QemuctlError, match="the VM has ended"):
            await vm.stats.sample()
