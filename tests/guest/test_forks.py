"""Forks of one template: each a machine of its own, none changes another."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from qemuctl.errors import SpecError
from qemuctl.registry.template import Guest
from qemuctl.spec import Spec
from qemuctl.templates.fresh_vm import fresh
from qemuctl.templates.identity import identity
from tests.guest.conftest import Home
from tests.guest.templates import facts, record, sums, throwaways

# Set back, so that a fork which kept it would be found out.
WARM = "echo warm > /tmp/warm; date -s '2020-01-01 00:00'"


@pytest.fixture(scope="module")
def db(shared: Home, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A template with something of everything: `shared` has it as db."""
    disk = tmp_path_factory.mktemp("disks") / "given.raw"
    disk.write_bytes(b"given".ljust(1 << 20, b"\0"))
    shared.run(
        "template", "create", "db", "--image", "tiny", "--memory", "256M,max=512M",
        "--cpus", "2,max=4,hypervisor=vmware", "--disk", "size=64M",
        "--disk", f"path={disk},readonly=on", "--nic", "user", "-p", ":7777",
        "--run", WARM, timeout=150,
    )  # fmt: skip
    return "db"


@pytest.fixture(scope="module")
def pair(shared: Home, db: str) -> Iterator[tuple[str, str]]:
    """Two forks that run."""
    for name in ("one", "two"):
        assert shared.text("fork", db, "--name", name) == f"{name}\n"
    yield "one", "two"
    for name in ("one", "two"):
        shared.run("rm", "--force", name, check=None)


def sh(home: Home, vm: str, script: str, check: int = 0) -> str:
    return home.text("exec", vm, "--", "sh", "-c", script, check=check)


def test_what_was_in_memory_is_there_at_once(
    shared: Home, pair: tuple[str, str]
) -> None:
    for name in pair:
        script = "cat /tmp/warm; nproc; head -c 5 /dev/vdb; ls /dev/vd?"
        assert sh(shared, name, script) == "warm\n2\ngiven/dev/vda\n/dev/vdb\n"
        # A client that still asked would ask in the template's name.
        addresses = sh(shared, name, "ip -4 -o addr show scope global")
        assert addresses.count("10.0.2.15/24") == 2


def test_its_console_begins_as_the_templates_and_goes_on_as_its_own(
    shared: Home, pair: tuple[str, str]
) -> None:
    for name in pair:
        sh(shared, name, "echo this is $(hostname) > /dev/ttyS0")
        shared.run("wait", name, "--for", f"serial:this is {name}")
        shared.run("wait", name, "--for", "serial:tiny: ready")
        log = shared.text("logs", name)
        assert log.index("tiny: ready") < log.index(f"this is {name}")
        assert log.count("this is") == 1


def test_each_is_a_machine_of_its_own(shared: Home, pair: tuple[str, str]) -> None:
    seen = [
        {
            "host name and macs": sh(
                shared, name, "hostname; cat /sys/class/net/eth*/address"
            ).split(),
            "uuid": shared.text("qmp", name, "query-uuid"),
            "guid": shared.text("qmp", name, "query-vm-generation-id"),
            "forward": record(shared, name)["forwards"][0],
            "disk": json.loads(shared.text("info", name, "--json"))["disks"],
        }
        for name in pair
    ]
    for what in seen[0]:
        assert seen[0][what] != seen[1][what], what
    for name, found in zip(pair, seen, strict=True):
        host, *macs = found["host name and macs"]
        assert host == name
        # The guest has the addresses that QEMU's cards have.
        listed = json.loads(shared.text("nic", "ls", name, "--json"))
        assert [row["mac"] for row in listed] == macs


def test_each_has_the_hosts_clock(shared: Home, pair: tuple[str, str]) -> None:
    for name in pair:
        before = time.time()
        clock = int(sh(shared, name, "date +%s"))
        assert before - 5 <= clock <= time.time() + 5


def test_random_numbers_differ_in_the_very_first_command(shared: Home, db: str) -> None:
    command = "head -c 16 /dev/urandom | od -An -tx1"
    done = shared.text("fork", db, "--count", "4", "--", "sh", "-c", command)
    found = [line for line in done.splitlines() if line.strip()]
    assert len(found) == len(set(found)) == 4
    assert throwaways(shared) == []


def test_a_forward_reaches_the_fork_that_it_is_of(
    shared: Home, pair: tuple[str, str]
) -> None:
    # Two cards in networks of the same numbers: the answer would take either.
    script = (
        "ip link set eth1 down; mkdir -p /tmp/w; hostname > /tmp/w/a; "
        "httpd -p 7777 -h /tmp/w"
    )
    for name in pair:
        sh(shared, name, script)
        address = record(shared, name)["forwards"][0].removesuffix("->7777")
        with urllib.request.urlopen(f"http://{address}/a", timeout=60) as reply:
            assert reply.read() == f"{name}\n".encode()


def test_a_forward_reaches_a_guest_that_has_just_got_another_address(
    shared: Home, pair: tuple[str, str]
) -> None:
    """It may have said the template's to the network before: nobody waits for the guest
    to speak again."""
    one, _ = pair
    address = record(shared, one)["forwards"][0].removesuffix("->7777")
    sh(shared, one, "ping -c 1 10.0.2.2; pidof httpd || httpd -p 7777")
    now = json.loads(shared.text("nic", "ls", one, "--json"))[0]["mac"]
    for old, new in ((now, "52:54:00:00:00:99"), ("52:54:00:00:00:99", now)):
        guest = Guest(macs=(old,), readdress=True, reseed=None, fine_clock=False)
        sh(shared, one, "\n".join(identity(guest, one, (new,))))
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(4) == b"HTTP"


def test_what_one_writes_no_other_sees(
    shared: Home, db: str, pair: tuple[str, str]
) -> None:
    before = sums(shared, db)
    one, two = pair
    sh(shared, one, "echo one > /tmp/warm; echo one | dd of=/dev/vda conv=fsync")
    sh(shared, one, "dd if=/dev/urandom of=/tmp/much bs=1M count=40; hostname new")
    script = "cat /tmp/warm; hostname; head -c 3 /dev/vda | tr '\\0' 0; ls /tmp/much"
    assert sh(shared, two, script, check=1) == "warm\ntwo\n000"
    fresh = shared.text("fork", db, "--", "sh", "-c", script, check=1)
    assert fresh.startswith("warm\ndb-")
    assert fresh.endswith("\n000")
    assert sums(shared, db) == before
    assert facts(shared, db)["problem"] is None


def test_memory_is_shared_until_it_is_written_to(shared: Home, db: str) -> None:
    names = shared.text("fork", db, "--name", "many", "--count", "5").split()
    assert names == [f"many-{number}" for number in range(1, 6)]
    try:
        pids = [record(shared, name)["qemu"]["pid"] for name in names]
        memory = [_ram(pid) for pid in pids]
        rss, pss = (sum(part) for part in zip(*memory, strict=True))
        assert rss > 5 * (16 << 20)
        assert pss < rss / 2
    finally:
        for name in names:
            shared.run("rm", "--force", name)


def _ram(pid: int) -> tuple[int, int]:
    """Resident and proportional bytes of the guest's memory in one QEMU."""
    for part in psutil.Process(pid).memory_maps(grouped=False):
        if part.path.endswith("/ram"):
            return part.rss, part.pss
    raise AssertionError("the memory is no file")


def test_a_fork_that_was_stopped_starts_as_any_other_vm(shared: Home, db: str) -> None:
    shared.run("fork", db, "--name", "stays")
    sh(shared, "stays", "echo kept | dd of=/dev/vda conv=fsync")
    assert "stays" in shared.text("ls")
    assert record(shared, "stays")["template"] == db
    shared.run("stop", "stays")
    shared.run("start", "stays", "--wait", timeout=150)
    assert record(shared, "stays")["template"] is None
    assert sh(shared, "stays", "head -c 4 /dev/vda; ls /tmp/warm", check=1) == "kept"
    shared.run("kill", "stays")
    shared.run("rm", "stays")


def test_processors_and_memory_are_plugged_into_a_fork(
    shared: Home, db: str, pair: tuple[str, str]
) -> None:
    before = sums(shared, db)
    _, two = pair
    shared.run("set", two, "--cpus", "3", "--memory", "384M")
    memory = "n=$(awk '/MemTotal/ {print $2}' /proc/meminfo)"
    script = f"nproc; {memory}; [ $n -gt 240000 ] && echo more"
    assert sh(shared, two, script) == "3\nmore\n"
    shared.run("disk", "add", two, "--size", "1M")
    shared.run("nic", "add", two, "user")
    assert sums(shared, db) == before


def test_a_fork_has_no_balloon_and_gets_none(
    shared: Home, pair: tuple[str, str]
) -> None:
    one, _ = pair
    assert "balloon" in shared.words("balloon", one, "128M", check=1)
    words = shared.words(
        "qmp", one, "device_add", "driver=virtio-balloon-pci", "id=b", check=1
    )
    assert "a fork takes no balloon" in words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--memory", "2G"), "the template db has 256M, and so have its forks: 2G"),
        (("--memory", "256M,max=1G"), "has 512M, and so have its forks: 1G"),
        (("--cpus", "8"), "the template db has 2, and so have its forks: 8"),
        (("--name", "../x", "--count", "2"), "not a name: '../x-1'"),
        (("--name", "../x"), "not a name: '../x'"),
        (("--name", "x" * 80), "name too long"),
        (("--name", ""), "not a name"),
    ],
)
def test_what_a_fork_cannot_be_is_told_before_anything_is_made(
    shared: Home, db: str, flags: tuple[str, ...], words: str
) -> None:
    assert words in shared.words("fork", db, *flags, check=1)
    assert throwaways(shared) == []


def test_what_a_template_has_already_can_be_said(shared: Home, db: str) -> None:
    flags = ("--memory", "256M", "--cpus", "2,max=4")
    assert shared.text("fork", db, *flags, "--", "nproc") == "2\n"


def test_a_name_that_is_taken_is_refused_and_left_alone(
    shared: Home, db: str, pair: tuple[str, str]
) -> None:
    assert "exists already: one" in shared.words("fork", db, "--name", "one", check=1)
    assert sh(shared, "one", "cat /proc/sys/kernel/ostype") == "Linux\n"


def test_of_two_that_want_one_name_at_once_one_gets_it(shared: Home, db: str) -> None:
    both = [
        shared.popen("fork", db, "--name", "race", stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    words = b"".join(process.communicate(timeout=60)[1] for process in both)
    assert sorted(process.returncode for process in both) == [0, 1]
    assert b"a VM of this name exists already: race" in words
    assert sh(shared, "race", "hostname") == "race\n"
    shared.run("rm", "--force", "race")


def test_what_forks_say_is_printed_in_their_order_and_the_worst_is_the_status(
    shared: Home, db: str
) -> None:
    done = shared.run(
        "fork", db, "--count", "3", "--", "sh", "-c", "echo out; echo err >&2; exit 7",
        check=7,
    )  # fmt: skip
    assert done.stdout == b"out\n" * 3
    assert done.stderr.count(b"err\n") == 3
    assert throwaways(shared) == []


def test_many_forks_leave_the_template_as_it_was(
    shared: Home, db: str, until: Callable[..., Any]
) -> None:
    before = sums(shared, db)
    code = """
import asyncio
from qemuctl.templates import catalog
from qemuctl.templates.fork import park
async def main():
    template, limit = catalog.find("db"), asyncio.Semaphore(3)
    async def one(number):
        async with limit:
            attached = await park(template)
            await attached.end()
    await asyncio.gather(*map(one, range(20)))
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], env=shared.env, check=True)
    script = "dd if=/dev/urandom of=/dev/vda bs=1M count=4 2>/dev/null; sync; exit 3"
    for _ in range(2):
        shared.run("fork", db, "--count", "3", "--", "sh", "-c", script, check=3)
    assert sums(shared, db) == before
    shared.run("template", "verify", db)
    assert facts(shared, db)["problem"] is None
    assert until(lambda: throwaways(shared) == [])


def test_a_fork_whose_qemu_dies_is_told_and_gone(shared: Home, db: str) -> None:
    words = shared.words(
        "fork", db, "--", "sh", "-c",
        "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 60",
        check=1,
    )  # fmt: skip
    assert "guest panicked" in words
    assert throwaways(shared) == []


async def test_a_spec_of_another_machine_gets_no_fork(
    shared: Home, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    with pytest.raises(SpecError, match="not as in the template db"):
        async with fresh(Spec(name="other", hotplug_ports=7), template=db):
            raise AssertionError("it was started")
    assert throwaways(shared) == []


def test_ram_that_a_fork_has_kept_fits_until_it_is_stopped(
    shared: Home, db: str
) -> None:
    shared.run("fork", db, "--name", "keeper")
    try:
        sh(shared, "keeper", "echo then > /tmp/marker; echo then | dd of=/dev/vda")
        words = shared.words("snapshot", "create", "keeper", "then")
        assert "keeper is a fork of db: this RAM fits until it is stopped" in words
        sh(shared, "keeper", "echo now > /tmp/marker")
        shared.run("snapshot", "revert", "keeper", "then")
        assert sh(shared, "keeper", "cat /tmp/marker") == "then\n"
        sh(shared, "keeper", "echo now | dd of=/dev/vda conv=fsync")
        shared.run("kill", "keeper")
        words = shared.words("snapshot", "revert", "keeper", "then", check=1)
        assert "then has the RAM of a fork of db" in words
        assert "it has been" in words
        shared.run("start", "keeper", "--paused")
        words = shared.words("snapshot", "revert", "keeper", "then", check=1)
        assert "then has the RAM of a fork of db" in words
        # Its disks have not gone back either.
        shared.run("resume", "keeper")
        shared.run("wait", "keeper")
        assert sh(shared, "keeper", "head -c 3 /dev/vda") == "now"
        words = shared.words("snapshot", "create", "keeper", "later")
        assert "is a fork" not in words
    finally:
        shared.run("rm", "--force", "keeper")
