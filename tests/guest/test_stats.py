"""Numbers of real guests: what the guest does is what is shown; nothing hangs."""

from __future__ import annotations

import asyncio
import json
import os
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
from qemuctl.hotplug.balloon_stats import guest_memory
from qemuctl.paths import VmPaths
from qemuctl.stats.all_vms import Board
from tests.conftest import wait_until
from tests.guest.conftest import Home

MIB = 1024 * 1024
# Seconds for what a busy host delays, and after which something hangs.
PATIENCE = 60.0
HANG = 40.0
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
    from qemuctl.registry.records.process_record import Record

    record = Record.read(home.path / "state" / "vms" / "web" / "process.json")
    assert record is not None
    return record.qemu


@contextmanager
def no_hang() -> Iterator[None]:
    """The block ends, though somebody whom it asks never answers."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < HANG


def running(home: Home) -> dict[str, Any]:
    """The numbers once QEMU has answered: on a busy host it may miss its second."""
    return dict(wait_until(lambda: _running(stats(home)), PATIENCE))


def _answered(sample: dict[str, Any]) -> dict[str, Any] | None:
    return sample if sample["disks"] else None


def _running(sample: dict[str, Any]) -> dict[str, Any] | None:
    return sample if sample["state"] == "running" else None


# -- stats ---------------------------------------------------------------------------


@contextmanager
def busy_guest(home: Home) -> Iterator[None]:
    """The guest's processor has always something to do."""
    loop = "touch /tmp/busy; (while [ -e /tmp/busy ]; do :; done) >/dev/null 2>&1 &"
    sh(home, loop)
    try:
        yield
    finally:
        sh(home, "rm /tmp/busy")


def ran(home: Home, thread: int) -> float:
    """Seconds that the host's kernel has given a thread of QEMU (proc(5))."""
    pid = qemuctl_process(home).pid
    schedstat = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text()
    return int(schedstat.split()[0]) / 1e9


def test_a_busy_guest_takes_what_the_host_gives_it_and_an_idle_one_next_to_nothing(
    shared: Home, web: str, until: Until
) -> None:
    until(lambda: running(shared)["rates"]["cpu_share"] < 0.3, PATIENCE)
    (vcpu,) = json.loads(shared.text("qmp", web, "query-cpus-fast"))
    with busy_guest(shared):
        begun, before = time.monotonic(), ran(shared, vcpu["thread-id"])
        busy = stats(shared, "--interval", "2s")["rates"]
        given = ran(shared, vcpu["thread-id"]) - before
        outside = time.monotonic() - begun - busy["seconds"]
    (share,) = (vcpu["cpu_share"] for vcpu in busy["vcpus"])
    # What it had while nobody measured is unknown; the kernel counts in ticks.
    assert given - outside - 0.1 < share * busy["seconds"] < given + 0.1
    assert share > 0.05
    assert share <= busy["cpu_share"] + 0.1
    of_all = busy["cpu_share"] / (os.cpu_count() or 1)
    assert busy["host_share"] == pytest.approx(of_all, abs=0.001)


def test_ten_megabytes_written_in_the_guest_are_seen(shared: Home, web: str) -> None:
    before = running(shared)
    with shared.popen("stats", web, "--json", "--count", "9999", "--interval", "500ms",
                      stdout=-1) as process:  # fmt: skip
        assert process.stdout is not None
        samples = [json.loads(process.stdout.readline())]
        # Whoever looks does not keep the agent from others.
        sh(shared, "dd if=/dev/zero of=/dev/vda bs=1M count=10 conv=fsync 2>&1")
        sh(shared, "dd if=/dev/vda of=/dev/null bs=1M skip=20 count=5 2>&1")
        assert process.poll() is None
        ended = time.time()
        # One that has begun since: a sample has its time when it is complete.
        while samples[-2:][0]["at"] < ended or not samples[-1]["disks"]:
            samples.append(json.loads(process.stdout.readline()))
        process.terminate()
    assert process.returncode == 143
    (first,), (last,) = before["disks"], samples[-1]["disks"]
    assert (first["id"], last["id"]) == ("disk0", "disk0")
    written = last["written_bytes"] - first["written_bytes"]
    assert 10 * MIB <= written < 11 * MIB
    assert last["write_operations"] > first["write_operations"]
    assert last["flush_operations"] > first["flush_operations"]
    assert last["read_bytes"] - first["read_bytes"] >= 5 * MIB
    speeds = [
        disk["written_bytes_per_second"]
        for sample in samples
        for disk in (sample["rates"] and sample["rates"]["disks"]) or ()
    ]
    assert max(speeds) > MIB / 10


def test_the_first_numbers_come_at_once_with_rates_since_anybody_looked(
    shared: Home, web: str
) -> None:
    begun = time.monotonic()
    before = running(shared)
    sh(shared, "dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync 2>&1")
    wait_until(lambda: time.monotonic() > begun + 1, PATIENCE)
    after = running(shared)
    # A second before, or more: one that is younger is not compared with.
    since = after["at"] - before["at"]
    assert after["rates"]["seconds"] >= min(since, 1.0)
    (disk,) = after["rates"]["disks"]  # by readings of their own
    assert disk["written_bytes_per_second"] * after["rates"]["seconds"] > 4 * MIB
    assert re.search(r"rates: +of the last \d", shared.text("stats", web))
    (disk,) = stats(shared, "--interval", "300ms")["rates"]["disks"]
    assert disk["written_bytes_per_second"] < MIB


def test_what_the_guest_sends_is_counted_by_its_agent(
    shared: Home, web: str, until: Until
) -> None:
    before = until(lambda: stats(shared)["nics"], PATIENCE)
    sh(shared, "ping -c 5 -i 0.1 -s 1000 10.0.2.2")
    after = until(lambda: stats(shared)["nics"], PATIENCE)
    assert [nic["id"] for nic in after] == ["eth0"]
    assert after[0]["sent_bytes"] - before[0]["sent_bytes"] >= 5000
    assert after[0]["received_packets"] - before[0]["received_packets"] >= 5


def test_memory_that_the_guest_uses_is_told_by_its_balloon(
    shared: Home, web: str, until: Until
) -> None:
    before = running(shared)["memory"]
    assert before["configured_bytes"] == before["actual_bytes"] == 384 * MIB
    assert 0 < before["proportional_bytes"] <= before["resident_bytes"] + MIB
    assert 10 * MIB < before["guest_used_bytes"] < 384 * MIB
    sh(shared, "dd if=/dev/zero of=/tmp/fill bs=1M count=60 2>&1")
    more = before["guest_used_bytes"] + 50 * MIB
    # The driver is asked every few seconds.
    until(lambda: stats(shared)["memory"]["guest_used_bytes"] > more, PATIENCE)
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
        measured = ("--interval", "200ms")
        sample = wait_until(lambda: _answered(stats(shared, *measured)), PATIENCE)
        assert sample["state"] == "paused"
        assert sample["rates"]["vcpus"][0]["cpu_share"] < 0.05
        assert sample["nics"] is None
        assert sample["disks"]
        # One that is asked, and cannot answer, is named.
        assert facts(shared)["guest"] is None
    finally:
        shared.run("resume", web)


def test_a_stuck_qemu_is_told_and_nothing_hangs(shared: Home, web: str) -> None:
    with stopped_qemu(shared):
        with no_hang():
            sample = stats(shared)
        assert (sample["state"], sample["disks"]) == ("unresponsive", None)
        assert sample["memory"]["resident_bytes"] > 0
        with no_hang():
            assert "unresponsive" in shared.text("info", web)
        with no_hang():
            table = shared.text("top", "--count", "2")
        assert table.count("unresponsive") == 2
    assert running(shared)


def test_a_vm_that_cannot_be_measured_says_why(shared: Home, web: str) -> None:
    shared.run("create", "idle", "--memory", "64M", "--cdrom", "")
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
    assert (guest["host_name"], guest["architecture"]) == ("web", "x86_64")
    card = next(x for x in guest["interfaces"] if x["name"] == "eth0")
    assert "10.0.2.15/24" in card["addresses"]
    assert guest["users"] == []
    text = shared.text("info", web)
    assert "hostname:" in text
    assert "eth0: 10.0.2.15/24" in text


def test_nobody_waits_for_an_agent_that_hangs(
    shared: Home, web: str, until: Until
) -> None:
    # The way into the guest that needs no agent: a shell on its forwarded port.
    sh(shared, "nc -ll -p 22 -e sh >/dev/null 2>&1 </dev/null &")
    (forward,) = facts(shared)["forwards"]
    port = int(forward.partition("->")[0].rpartition(":")[2])

    def tell(signal_name: str) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as guest:
            guest.sendall(
                b"kill -%s $(pidof qemu-ga); echo ok; exit\n" % signal_name.encode()
            )
            assert guest.recv(3) == b"ok\n"

    tell("STOP")
    try:
        with no_hang():
            assert facts(shared)["guest"] == "the agent does not answer"
        words = shared.text("info", web)
        assert re.search("guest: +the agent does not answer", words)
        with no_hang():
            assert stats(shared)["nics"] is None
    finally:
        tell("CONT")
    until(lambda: isinstance(facts(shared)["guest"], dict), PATIENCE)
    sh(shared, "killall nc")


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
        until(lambda: "sector" in sample(), PATIENCE)
        with no_hang():
            assert "running" in shared.text("qmp", "sector", "query-status")
        until(lambda: sample()["sector"]["state"] == "running", PATIENCE)
        # No driver, no agent: nobody knows, and nobody invents.
        late = sample()["sector"]
        assert late["memory"]["guest"] is None
        assert late["nics"] is None
        assert late["disks"][0]["read_bytes"] > 0
        until(lambda: sample()["web"]["rates"]["nics"], PATIENCE)
        shared.run("kill", "sector")
        until(lambda: "sector" not in sample(), PATIENCE)
        process.terminate()
        assert process.wait(PATIENCE) == 143
    shared.run("rm", "sector")


def test_top_of_nothing_and_for_a_pipe(here: Home) -> None:
    assert here.text("top", "--count", "1").split() == [
        "NAME", "STATE", "CPU", "HOST", "VCPU%", "MEMORY", "GUEST", "RES", "PSS",
        "READ/s", "WRITE/s", "OPS/s", "RX/s", "TX/s",
    ]  # fmt: skip
    assert json.loads(here.text("top", "--count", "1", "--json"))["vms"] == []


def test_top_on_a_terminal_is_live_and_ends_with_ctrl_c(shared: Home, web: str) -> None:
    argv = shared.command("top", "--interval", "200ms")
    terminal = pexpect.spawn(
        argv[0], argv[1:], env=shared.env | {"COLUMNS": "80"}, timeout=PATIENCE
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


def top(home: Home) -> dict[str, Any]:
    table = json.loads(home.text("top", "--json", "--count", "1"))
    return {vm["name"]: vm for vm in table["vms"]}


def test_top_does_without_a_monitor_that_another_client_holds(
    shared: Home, web: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    run = Path(json.loads(shared.text("info", web, "--json"))["sockets"])
    paths = VmPaths(VmPaths.of(web).state, run)
    for held in (paths.owner_socket, paths.tools_socket):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(held))
            assert client.recv(10)
            assert len(running(shared)["disks"]) == 1
            until(lambda: top(shared)["web"]["state"] == "running", PATIENCE)


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
        async with asyncio.timeout(PATIENCE):
            while True:
                state = (await board.look())[0].sample.state
                if state is qemuctl.State.RUNNING:
                    return
                await asyncio.sleep(0.05)


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
        await vm.wait_console("ok", timeout=PATIENCE)
        assert vm.connected
        async for sample, _ in vm.stats.watch(0.2):
            if sample.disks is not None:
                break
        assert [vcpu.index for vcpu in sample.vcpus] == [0, 1]
        assert sample.memory.configured_bytes == 16 * MIB
        assert sample.memory.guest is None
        assert await guest_memory(vm) is None
        assert sample.disks[0].read_bytes >= 512
        async for later, rates in vm.stats.watch(0.2):
            if rates is not None:
                assert later.pid == sample.pid
                break
        await vm.power.kill()
        await vm.wait_exit()
        with pytest.raises(qemuctl.QemuctlError, match="the VM has ended"):
            await vm.stats.sample()
