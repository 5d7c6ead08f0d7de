"""Snapshots of a guest that runs: RAM, disk and processes go back together."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.guest.conftest import Home
from tests.guest.disks import asked, device, inside

# A process that counts when it is told to, and keeps the number to itself.
COUNTER = """(n=0; while :; do
if rm /tmp/tick; then n=$((n+1)); echo $n >/tmp/n; fi; sleep 0.05
done) >/dev/null 2>&1 &"""


def rows(home: Home, vm: str) -> dict[str, dict[str, Any]]:
    every = json.loads(home.text("snapshot", "ls", vm, "--json"))
    return {row["name"]: row for row in every}


def state(home: Home, vm: str) -> str:
    every = json.loads(home.text("ls", "-a", "--json"))
    return str(next(row["state"] for row in every if row["name"] == vm))


def write(home: Home, vm: str, text: str) -> None:
    """A marker in the guest's RAM, and one on its disk."""
    disk = device(home, vm, "data")
    inside(home, vm, f"echo {text} >/tmp/marker; echo {text} | "
           f"dd of=/dev/{disk} bs=512 conv=sync,fsync 2>/dev/null")  # fmt: skip


def read(home: Home, vm: str) -> list[str]:
    disk = device(home, vm, "data")
    sector = f"dd if=/dev/{disk} bs=512 count=1 iflag=direct 2>/dev/null"
    return inside(home, vm, f"cat /tmp/marker; {sector} | tr -d '\\0'").split()


def count(home: Home, vm: str) -> int:
    """Has the process count on."""
    script = "rm -f /tmp/n; touch /tmp/tick; while [ ! -s /tmp/n ]; do sleep 0.05; done"
    return int(inside(home, vm, f"{script}; cat /tmp/n"))


@pytest.fixture
def tidy(shared: Home, web: str) -> Iterator[None]:
    """Leaves the VM running, without snapshots."""
    yield
    if state(shared, web) == "off":
        shared.run("start", web, "--wait")
    shared.run("resume", web)
    for name in rows(shared, web):
        shared.run("snapshot", "rm", web, name)
    assert rows(shared, web) == {}


def test_ram_disk_and_processes_go_back_together(
    shared: Home, web: str, tidy: None
) -> None:
    inside(shared, web, COUNTER)
    write(shared, web, "one")
    inside(shared, web, "date -u -s @1000000000")
    assert [count(shared, web), count(shared, web)] == [1, 2]
    words = shared.words(
        "snapshot", "create", web, "first", "--description", "a  marker\n is there"
    )
    assert re.search(r"made the snapshot first: [\d.]+M of RAM; disk0", words)
    assert state(shared, web) == "running"
    write(shared, web, "two")
    assert [count(shared, web), count(shared, web)] == [3, 4]
    shared.run("snapshot", "create", web, "second")

    words = shared.words("snapshot", "revert", web, "first")
    assert "web is running, as of first" in words
    assert "clock" not in words
    # The first command after it: no stale reply of the other time is in its way.
    assert read(shared, web) == ["one", "one"]
    assert count(shared, web) == 3
    drift = abs(float(inside(shared, web, "date +%s")) - time.time())
    assert drift < 60

    shared.run("snapshot", "revert", web, "second")
    assert read(shared, web) == ["two", "two"]
    assert count(shared, web) == 5
    shared.run("snapshot", "revert", web, "first")
    shared.run("snapshot", "create", web, "third")
    _check_listed(shared, web)
    # The children of what is removed stay, and can be loaded.
    shared.run("snapshot", "rm", web, "first")
    found = rows(shared, web)
    assert [row["parent"] for row in found.values()] == [None, None]
    shared.run("snapshot", "revert", web, "second")
    assert read(shared, web) == ["two", "two"]


def _check_listed(home: Home, vm: str) -> None:
    found = rows(home, vm)
    assert list(found) == ["first", "second", "third"]
    assert [row["parent"] for row in found.values()] == [None, "first", "first"]
    assert [row["current"] for row in found.values()] == [False, False, True]
    assert found["first"]["description"] == "a marker is there"
    assert found["first"]["state"] == "running"
    assert found["first"]["ram_bytes"] > 1 << 20
    assert found["first"]["machine"].startswith("pc-q35-")
    table = home.text("snapshot", "ls", vm)
    assert re.search("^first +20.*running.*M +a marker is there$", table, re.MULTILINE)
    assert re.search("^├─ second +20", table, re.MULTILINE)
    assert re.search(r"^└─ third \* +20", table, re.MULTILINE)


def test_a_paused_vm_comes_back_paused(shared: Home, web: str, tidy: None) -> None:
    shared.run("pause", web)
    shared.run("snapshot", "create", web, "still")
    assert state(shared, web) == "paused"
    shared.run("resume", web)
    words = shared.words("snapshot", "revert", web, "still")
    assert "web is paused, as of still" in words
    assert state(shared, web) == "paused"
    shared.run("resume", web)
    assert inside(shared, web, "echo there") == "there"
    # And a paused one goes on where the snapshot ran.
    shared.run("snapshot", "create", web, "moving")
    shared.run("pause", web)
    shared.run("snapshot", "revert", web, "moving")
    assert state(shared, web) == "running"
    assert inside(shared, web, "echo there") == "there"


def test_a_panicked_vm_goes_back_to_where_it_was_paused(
    shared: Home, web: str, tidy: None, until: Callable[..., Any]
) -> None:
    inside(shared, web, "echo before >/tmp/marker")
    shared.run("pause", web)
    shared.run("snapshot", "create", web, "still")
    shared.run("resume", web)
    asked(shared, web, ("set-action", {"panic": "pause"}))
    try:
        # In the background: no agent will tell how a panic ended.
        panic = "(sleep 0.3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"
        inside(shared, web, panic)
        until(lambda: state(shared, web) == "panicked")
        words = shared.words("snapshot", "revert", web, "still")
        assert "web is paused, as of still" in words
        assert state(shared, web) == "paused"
        shared.run("resume", web)
        assert inside(shared, web, "cat /tmp/marker") == "before"
    finally:
        asked(shared, web, ("set-action", {"panic": "exit-failure"}))


def test_a_vm_that_is_off_starts_where_the_snapshot_was(
    shared: Home, web: str, tidy: None
) -> None:
    write(shared, web, "before")
    up = inside(shared, web, "cat /proc/sys/kernel/random/boot_id")
    shared.run("snapshot", "create", web, "kept")
    write(shared, web, "after")
    shared.run("kill", web)
    assert rows(shared, web)["kept"]["ram_bytes"] > 1 << 20
    words = shared.words("snapshot", "revert", web, "kept")
    assert "web is running, as of kept" in words
    assert read(shared, web) == ["before", "before"]
    # It has not booted.
    assert inside(shared, web, "cat /proc/sys/kernel/random/boot_id") == up
    shared.run("wait", web)
    shared.run("pause", web)
    shared.run("snapshot", "create", web, "still")
    shared.run("kill", web)
    shared.run("snapshot", "revert", web, "still")
    assert state(shared, web) == "paused"
    # Nobody ends it as one that has not even begun.
    assert "its guest shut down (agent)" in shared.words("stop", web)


def test_disks_only_are_all_of_one_moment(shared: Home, web: str, tidy: None) -> None:
    shared.run("disk", "add", web, "--size", "8M", "--target", "more")
    try:
        write(shared, web, "one")
        words = shared.words("snapshot", "create", web, "disks", "--disk-only")
        assert "disks only, file systems frozen; disk0, more" in words
        # It was thawed: an agent that is frozen runs nothing.
        write(shared, web, "two")
        row = rows(shared, web)["disks"]
        assert (row["ram_bytes"], row["consistency"]) == (None, "frozen")
        (drives,) = asked(shared, web, ("query-block", {}))
        images = [drive["inserted"]["image"] for drive in drives if "inserted" in drive]
        assert [each["snapshots"][0]["name"] for each in images] == ["disks", "disks"]
        words = shared.words("snapshot", "revert", web, "disks", check=1)
        assert "disks only, and the VM is on" in words
        assert "qemuctl stop web" in words
        shared.run("pause", web)
        words = shared.words("snapshot", "create", web, "cut", "--disk-only")
        assert "as after a power cut" in words
        shared.run("kill", web)
        words = shared.words("snapshot", "revert", web, "disks")
        assert "web is off, as of disks" in words
        assert rows(shared, web)["disks"]["current"]
        shared.run("start", web, "--wait")
        disk = device(shared, web, "data")
        assert inside(shared, web, f"head -c 3 /dev/{disk}") == "one"
        for name in ("disks", "cut"):
            shared.run("snapshot", "rm", web, name)
    finally:
        shared.run("disk", "rm", web, "more", "--delete")


def test_what_does_not_fit_is_refused_and_the_vm_goes_on(
    shared: Home, web: str, tidy: None
) -> None:
    shared.run("snapshot", "create", web, "plain")
    inside(shared, web, "echo here >/tmp/marker")
    shared.run("nic", "add", web, "user,id=later")
    words = shared.words("snapshot", "revert", web, "plain", check=1)
    assert "later: none then, virtio-net-pci on port" in words
    shared.run("nic", "rm", web, "later")
    shared.run("disk", "add", web, "--size", "1M", "--target", "hot", "--live")
    words = shared.words("snapshot", "revert", web, "plain", check=1)
    assert "plain knows nothing of hot" in words
    shared.run("snapshot", "create", web, "both")
    shared.run("disk", "rm", web, "hot", "--live")
    words = shared.words("snapshot", "revert", web, "both", check=1)
    assert "the VM has no disk hot" in words
    assert "the VM has no disk hot" in shared.text("snapshot", "ls", web)
    records = shared.path / f"state/vms/{web}/snapshots.json"
    text = records.read_text()
    records.write_text(text.replace('"machine": "pc-', '"machine": "pc-q35-1.0-'))
    words = shared.words("snapshot", "revert", web, "plain", check=1)
    assert "machine: pc-q35-1.0-" in words
    records.write_text(text)
    assert state(shared, web) == "running"
    assert inside(shared, web, "cat /tmp/marker") == "here"
    shared.run("snapshot", "revert", web, "plain")


def test_a_load_that_fails_says_what_has_become_of_the_vm(
    shared: Home, web: str, tidy: None
) -> None:
    shared.run("nic", "add", web, "user,id=gone", "--live")
    shared.run("snapshot", "create", web, "richer")
    shared.run("nic", "rm", web, "gone", "--live")
    # As if nobody had looked whether it fits.
    records = shared.path / f"state/vms/{web}/snapshots.json"
    value = json.loads(records.read_text())
    del value["snapshots"][0]["topology"]["gone"]
    records.write_text(json.dumps(value))
    words = shared.words("snapshot", "revert", web, "richer", check=1)
    assert "while loading VM state" in words
    assert "the VM is stopped for good" in words
    assert "qemuctl kill web" in words
    assert state(shared, web) == "paused"
    shared.run("kill", web)
    words = shared.words("snapshot", "revert", web, "richer", check=1)
    assert "cannot revert web" in words
    assert state(shared, web) == "off"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("create web a/b", 2, "not a name: 'a/b'"),
        ("create web 12", 2, "not a name for a snapshot: 12"),
        ("create web kept", 1, "there is a snapshot of this name: kept"),
        ("create nobody x", 1, "no such VM: nobody"),
        ("revert web nothing", 1, "there is no snapshot nothing"),
        ("revert web outside", 1, "outside was not made here"),
        ("rm web nothing", 1, "there are: kept"),
        ("ls nobody", 1, "no such VM: nobody"),
    ],
)
def test_what_cannot_be_says_why(
    shared: Home, web: str, arguments: str, status: int, words: str
) -> None:
    if "kept" not in rows(shared, web):
        shared.run("snapshot", "create", web, "kept", "--disk-only")
        outside = {"device": "disk0", "name": "outside"}
        asked(shared, web, ("blockdev-snapshot-internal-sync", outside))
    before = rows(shared, web)
    said = shared.words("snapshot", *arguments.split(), check=status)
    assert words in said
    assert rows(shared, web) == before


def test_two_at_once_are_one_after_the_other_or_refused(
    shared: Home, web: str, tidy: None
) -> None:
    both = [
        shared.popen("snapshot", "create", web, name, stderr=subprocess.PIPE)
        for name in ("x", "y")
    ]
    for one, name in zip(both, "xy", strict=True):
        _, words = one.communicate(timeout=60)
        made = name in rows(shared, web)
        assert made == (one.returncode == 0), words
        assert made or b"a snapshot is being made" in words
    made = [row for name, row in rows(shared, web).items() if name in ("x", "y")]
    assert made
    assert all(row["problem"] is None for row in made)


# -- without a guest -----------------------------------------------------------------


@pytest.fixture
def firmware(here: Home) -> Iterator[str]:
    """A VM that has been on once, with two disks, and one that is only read."""
    here.run("create", "cold", "--memory", "64M", "--nic", "none",
             "--disk", "size=8M", "--disk", "size=8M")  # fmt: skip
    here.run("start", "cold", "--paused")
    here.run("kill", "cold")
    yield "cold"
    with contextlib.suppress(AssertionError):
        here.run("kill", "cold")


def pattern(here: Home, number: int, value: int | None = None) -> int | None:
    """Writes the first bytes of a disk, or tells what they are."""
    path = here.path / f"state/vms/cold/disks/disk{number}.qcow2"
    if value is not None:
        _io(path, f"write -P {value} 0 512")
        return value
    text = _io(path, "read -v 0 512")
    return int(text.split()[1], 16)


def _io(path: Any, command: str) -> str:
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_vm_that_is_off_has_snapshots_of_its_disks(here: Home, firmware: str) -> None:
    for number in (0, 1):
        pattern(here, number, 1)
    words = here.words("snapshot", "create", firmware, "one")
    assert "disks only, for it was off; disk0, disk1" in words
    for number in (0, 1):
        pattern(here, number, 2)
    here.run("snapshot", "create", firmware, "two")
    assert "web is off" not in here.words("snapshot", "revert", firmware, "one")
    assert [pattern(here, 0), pattern(here, 1)] == [1, 1]
    assert rows(here, firmware)["one"]["current"]
    # All or none: a disk that has lost it keeps the others as they are.
    disk1 = here.path / "state/vms/cold/disks/disk1.qcow2"
    here.run("image", "snapshot", "rm", disk1, "two")
    assert "missing on disk1" in here.text("snapshot", "ls", firmware)
    words = here.words("snapshot", "revert", firmware, "two", check=1)
    assert "two is not whole: missing on disk1" in words
    assert [pattern(here, 0), pattern(here, 1)] == [1, 1]
    here.run("snapshot", "rm", firmware, "two")
    here.run("rename", firmware, "named")
    assert list(rows(here, "named")) == ["one"]
    here.run("rename", "named", firmware)
    # A full clone has what the disks hold now; a linked one would lose them.
    here.run("clone", firmware, "copy")
    assert rows(here, "copy") == {}
    words = here.words("clone", firmware, "linked", "--linked", check=1)
    assert "snapshots would go out of reach" in words
    here.run("export", firmware, here.path / "cold.tar")
    here.run("snapshot", "rm", firmware, "one")
    assert rows(here, firmware) == {}
    here.run("rm", firmware)


def test_a_disk_that_holds_no_snapshots_is_named_before_anything_is_changed(
    here: Home,
) -> None:
    here.run("create", "mixed", "--memory", "64M", "--disk", "size=1M",
             "--disk", "size=1M,format=raw")  # fmt: skip
    words = here.words("snapshot", "create", "mixed", "x", check=1)
    assert "disk1 is raw" in words
    here.run("start", "mixed", "--paused")
    for more in ([], ["--disk-only"]):
        words = here.words("snapshot", "create", "mixed", "x", *more, check=1)
        assert "disk1 is raw, which holds no snapshots" in words
        assert "qemuctl image convert" in words
    assert state(here, "mixed") == "paused"
    here.run("kill", "mixed")
    words = here.words("snapshot", "create", "mixed", "x", check=1)
    assert "disk1 is raw" in words
    assert rows(here, "mixed") == {}
    here.run("create", "fresh", "--memory", "64M", "--disk", "size=1M")
    # As one that is in the spec for the next start, and is to be made by it.
    folder = here.path / "state/vms/fresh"
    (folder / "disks/disk0.qcow2").unlink()
    (folder / "made").unlink()
    words = here.words("snapshot", "create", "fresh", "x", check=1)
    assert "disk0: not made yet" in words
    assert "qemuctl start fresh" in words
    here.run("create", "none", "--memory", "64M", "--cdrom", "")
    here.run("start", "none", "--paused")
    words = here.words("snapshot", "create", "none", "x", check=1)
    assert "no qcow2 disk" in words
    here.run("kill", "none")


def test_a_disk_that_is_only_read_is_left_out(here: Home, tmp_path: Any) -> None:
    raw = tmp_path / "only.raw"
    raw.write_bytes(bytes(1 << 20))
    here.run("create", "ro", "--memory", "64M", "--nic", "none", "--disk", "size=1M",
             "--disk", f"path={raw},format=raw,readonly=true")  # fmt: skip
    here.run("start", "ro", "--paused")
    assert "of RAM; disk0\n" in here.words("snapshot", "create", "ro", "x")
    here.run("snapshot", "revert", "ro", "x")
    assert state(here, "ro") == "paused"
    here.run("kill", "ro")
