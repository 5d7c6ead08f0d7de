"""Snapshots that are cut short: by Ctrl-C, by a kill, by a disk that is full."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import Home
from tests.guest.disks import asked, inside
from tests.unproven import in_small_mounts

# Cut off in the middle: QEMU needs some tenths of a second for all of the RAM.
CUT = """
import asyncio, os, signal, sys
from qemuctl.qmp.session import Session

how, qemu, *words = sys.argv[1:]
real = Session.command

def cut():
    if how == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
    elif how == "killed":
        os._exit(9)
    else:
        os.kill(int(qemu), signal.SIGKILL)

async def command(self, name, *arguments, **options):
    if name in ("snapshot-save", "snapshot-load"):
        asyncio.get_running_loop().call_later(0.03, cut)
    return await real(self, name, *arguments, **options)

Session.command = command
sys.argv = ["qemuctl", "snapshot", *words]
from qemuctl.cli.main import main
main()
"""


def cut(home: Home, how: str, vm: str, *words: str) -> tuple[int, str]:
    (entry,) = json.loads(home.text("ls", "--json"))
    done = subprocess.run(
        [sys.executable, "-c", CUT, how, str(entry["pid"]), *words],
        env=home.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def names(home: Home, vm: str) -> list[str]:
    every = json.loads(home.text("snapshot", "ls", vm, "--json"))
    assert all(row["problem"] is None for row in every), every
    return [row["name"] for row in every]


def current(home: Home, vm: str) -> str | None:
    every = json.loads(home.text("snapshot", "ls", vm, "--json"))
    return next((str(row["name"]) for row in every if row["current"]), None)


def state(home: Home) -> str:
    (entry,) = json.loads(home.text("ls", "-a", "--json"))
    return str(entry["state"])


def under_way(home: Home, vm: str) -> bool:
    return (home.path / f"state/vms/{vm}/snapshotting.json").exists()


@pytest.mark.parametrize(("how", "status"), [("ctrl-c", 130), ("killed", 9)])
def test_a_save_that_is_called_off_leaves_nothing(
    shared: Home, web: str, how: str, status: int
) -> None:
    shared.run("snapshot", "create", web, "before")
    inside(shared, web, f"echo {how} >/tmp/marker")
    returned, words = cut(shared, how, web, "create", web, "cut")
    assert returned == status, words
    assert under_way(shared, web) == (how == "killed")
    assert names(shared, web) == ["before"]
    assert not under_way(shared, web)
    assert state(shared) == "running"
    assert inside(shared, web, "cat /tmp/marker") == how
    (jobs,) = asked(shared, web, ("query-jobs", {}))
    assert jobs == []
    # The name is free again.
    shared.run("snapshot", "create", web, "cut")
    for name in ("cut", "before"):
        shared.run("snapshot", "rm", web, name)


def test_a_revert_that_is_called_off_has_come_to_its_end(
    shared: Home, web: str
) -> None:
    inside(shared, web, "echo then >/tmp/marker")
    shared.run("snapshot", "create", web, "then")
    inside(shared, web, "echo now >/tmp/marker")
    returned, words = cut(shared, "ctrl-c", web, "revert", web, "then")
    assert returned == 130, words
    assert state(shared) == "running"
    assert inside(shared, web, "cat /tmp/marker") == "then"
    shared.run("snapshot", "create", web, "later")
    assert current(shared, web) == "later"
    returned, words = cut(shared, "killed", web, "revert", web, "then")
    assert returned == 9, words
    assert names(shared, web) == ["then", "later"]
    assert current(shared, web) == "then"
    assert state(shared) == "running"
    assert inside(shared, web, "cat /tmp/marker") == "then"
    assert not under_way(shared, web)
    for name in ("then", "later"):
        shared.run("snapshot", "rm", web, name)


def test_a_qemu_that_dies_in_the_middle_leaves_no_half(shared: Home, web: str) -> None:
    shared.run("snapshot", "create", web, "before")
    returned, words = cut(shared, "qemu", web, "create", web, "cut")
    assert returned == 1
    assert "web ended: killed by signal 9" in words
    assert names(shared, web) == ["before"]
    assert not under_way(shared, web)
    shared.run("snapshot", "revert", web, "before")
    assert inside(shared, web, "echo there") == "there"
    # Nor does one that dies while it goes back.
    returned, words = cut(shared, "qemu", web, "revert", web, "before")
    assert returned == 1
    assert "web ended: killed by signal 9" in words
    assert under_way(shared, web)
    assert names(shared, web) == ["before"]
    assert current(shared, web) == "before"
    assert not under_way(shared, web)
    shared.run("snapshot", "revert", web, "before")
    shared.run("snapshot", "rm", web, "before")


# -- without a guest -----------------------------------------------------------------


@pytest.fixture
def cold(here: Home) -> Path:
    """The folder of a VM that is off and has two disks."""
    here.run("create", "cold", "--memory", "64M", "--nic", "none",
             "--disk", "size=8M", "--disk", "size=8M")  # fmt: skip
    here.run("start", "cold", "--paused")
    here.run("kill", "cold")
    return here.path / "state/vms/cold"


def disk(cold: Path, number: int, command: str) -> str:
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, cold / f"disks/disk{number}.qcow2"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def first(cold: Path, number: int) -> int:
    return int(disk(cold, number, "read -v 0 512").split()[1], 16)


def tag(cold: Path, number: int, switch: str, name: str) -> None:
    file = cold / f"disks/disk{number}.qcow2"
    subprocess.run(["qemu-img", "snapshot", switch, name, file], check=True)


def begun(cold: Path, what: str, name: str, **more: str) -> None:
    mark: dict[str, Any] = {"what": what, "name": name, "frozen": False, **more}
    (cold / "snapshotting.json").write_text(json.dumps(mark))


def loading(cold: Path, *after: str) -> None:
    """As if QEMU had begun to load the snapshot `then`, and told of ``after``."""
    begun(cold, "load", "then", job="qemuctl-load-1")
    told = [("JOB_STATUS_CHANGE", {"id": "qemuctl-load-1", "status": "running"})]
    told += [(name, {}) for name in after]
    stamp = {"seconds": 1, "microseconds": 0}
    with (cold / "events.out").open("a") as file:
        for name, data in told:
            event = {"event": name, "data": data, "timestamp": stamp}
            file.write(json.dumps(event) + "\n")


@pytest.fixture
def torn(here: Home, cold: Path) -> Path:
    """The same VM as QEMU leaves it when it ends between the disks of a load."""
    for number in (0, 1):
        disk(cold, number, "write -P 1 0 512")
    here.run("start", "cold", "--paused")
    here.run("snapshot", "create", "cold", "then")
    here.run("snapshot", "create", "cold", "later")
    here.run("kill", "cold")
    for number in (0, 1):
        disk(cold, number, "write -P 2 0 512")
    tag(cold, 0, "-a", "then")
    return cold


def test_what_a_killed_command_has_begun_on_disks_is_taken_back(
    here: Home, cold: Path
) -> None:
    tag(cold, 0, "-c", "half")
    begun(cold, "create", "half")
    assert names(here, "cold") == []
    here.run("snapshot", "create", "cold", "half")
    tag(cold, 1, "-d", "half")
    begun(cold, "remove", "half")
    assert names(here, "cold") == []
    # What was written down has come about, though nobody could say so.
    here.run("snapshot", "create", "cold", "whole")
    begun(cold, "create", "whole")
    assert names(here, "cold") == ["whole"]


def test_disks_of_two_times_never_start(here: Home, cold: Path) -> None:
    for number in (0, 1):
        disk(cold, number, "write -P 1 0 512")
    here.run("snapshot", "create", "cold", "then")
    for number in (0, 1):
        disk(cold, number, "write -P 2 0 512")
        tag(cold, number, "-c", ".before-revert")
    tag(cold, 0, "-a", "then")
    begun(cold, "apply", "then")
    assert [first(cold, 0), first(cold, 1)] == [1, 2]
    here.run("start", "cold", "--paused")
    here.run("kill", "cold")
    assert [first(cold, 0), first(cold, 1)] == [2, 2]
    assert names(here, "cold") == ["then"]
    here.run("snapshot", "revert", "cold", "then")
    assert [first(cold, 0), first(cold, 1)] == [1, 1]


def test_a_load_that_qemu_did_not_finish_is_finished_by_the_next_start(
    here: Home, torn: Path
) -> None:
    loading(torn)
    here.run("start", "cold", "--paused")
    assert current(here, "cold") == "then"
    here.run("kill", "cold")
    assert [first(torn, 0), first(torn, 1)] == [1, 1]
    assert not under_way(here, "cold")


def test_a_note_that_makes_no_sense_is_refused_with_what_to_do(
    here: Home, torn: Path
) -> None:
    note = torn / "snapshotting.json"
    note.write_bytes(b"")  # as a power cut leaves it
    for command in (["start", "cold", "--paused"], ["snapshot", "create", "cold", "x"]):
        words = here.words(*command, check=1)
        assert f"{note} makes no sense" in words
        assert "qemuctl snapshot revert cold SNAP" in words
        assert "qemuctl start cold --fresh" in words
    shown = here.run("snapshot", "ls", "cold")
    assert b"later" in shown.stdout
    assert b"qemuctl start cold --fresh" in shown.stderr
    assert [first(torn, 0), first(torn, 1)] == [1, 2]
    # What it names works: all disks are of one time, and the RAM is.
    here.run("snapshot", "revert", "cold", "then")
    assert state(here) == "paused"
    here.run("kill", "cold")
    assert [first(torn, 0), first(torn, 1)] == [1, 1]
    note.write_bytes(b"")
    here.run("start", "cold", "--paused", "--fresh")
    here.run("kill", "cold")
    assert names(here, "cold") == ["then", "later"]


def test_what_a_guest_wrote_after_a_load_stays(here: Home, torn: Path) -> None:
    disk(torn, 0, "write -P 2 0 512")
    loading(torn, "RESUME")
    assert names(here, "cold") == ["then", "later"]
    assert current(here, "cold") == "then"
    # Nor is there anything to finish of a load that QEMU has not begun.
    begun(torn, "load", "later", job="qemuctl-load-2")
    here.run("start", "cold", "--paused")
    here.run("kill", "cold")
    assert [first(torn, 0), first(torn, 1)] == [2, 2]
    assert current(here, "cold") == "then"


def test_disks_of_two_times_are_not_lent(here: Home, torn: Path) -> None:
    loading(torn)
    for words in (
        ["clone", "cold", "copy"],
        ["export", "cold", here.path / "cold.tar"],
        ["rename", "cold", "other"],
    ):
        said = here.words(*words, check=1)
        assert "cut short" in said
        assert "qemuctl snapshot ls cold" in said
    assert [first(torn, 0), first(torn, 1)] == [1, 2]
    here.run("snapshot", "ls", "cold")
    here.run("clone", "cold", "copy")
    loading(torn)
    here.run("rm", "cold")


def test_a_load_that_fails_on_the_second_disk_says_so_and_is_finished_later(
    here: Home, torn: Path
) -> None:
    disk(torn, 0, "write -P 2 0 512")
    file = torn / "disks/disk1.qcow2"
    with damaged(file):
        here.run("start", "cold", "--paused")
        words = here.words("snapshot", "revert", "cold", "then", check=1)
        assert "Could not load snapshot 'then' on 'disk1'" in words
        assert "some of its disks may be as they were then, and others not" in words
        assert "qemuctl kill cold" in words
        words = here.words("snapshot", "create", "cold", "more", check=1)
        assert "its revert to then has failed" in words
        here.run("kill", "cold")
        assert [first(torn, 0), first(torn, 1)] == [1, 2]
        # Never of two times: rather not at all.
        here.run("start", "cold", "--paused", check=1)
        assert "then" in here.words("snapshot", "ls", "cold")
    here.run("start", "cold", "--paused")
    here.run("kill", "cold")
    assert [first(torn, 0), first(torn, 1)] == [1, 1]


@contextlib.contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Where the first snapshot's table is, in its entry of a qcow2 file, makes no
    sense for the block."""
    with file.open("r+b") as image:
        image.seek(64)
        entry = int.from_bytes(image.read(8), "big")
        image.seek(entry)
        table = image.read(8)
        image.seek(entry)
        image.write((int.from_bytes(table, "big") + 1).to_bytes(8, "big"))
    yield
    with file.open("r+b") as image:
        image.seek(64)
        image.seek(int.from_bytes(image.read(8), "big"))
        image.write(table)


def test_a_revert_of_disks_is_all_or_nothing(here: Home, cold: Path) -> None:
    for number in (0, 1):
        disk(cold, number, "write -P 1 0 512")
    here.run("snapshot", "create", "cold", "then")
    for number in (0, 1):
        disk(cold, number, "write -P 2 0 512")
    holder = subprocess.Popen(
        ["qemu-io", "-r", "-f", "qcow2", cold / "disks/disk1.qcow2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    try:
        holder.stdout.read(1)
        words = here.words("snapshot", "revert", "cold", "then", check=1)
    finally:
        holder.communicate(b"quit\n")
    assert "in use by another process" in words
    assert [first(cold, 0), first(cold, 1)] == [2, 2]
    assert names(here, "cold") == ["then"]


def test_a_vm_whose_qemu_is_busy_with_a_snapshot_is_not_called_stuck(
    here: Home, cold: Path
) -> None:
    here.run("start", "cold", "--paused")
    pid = json.loads(here.text("ls", "--json"))[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert state(here) == "unresponsive"
        begun(cold, "create", "long")
        assert state(here) == "snapshotting"
        words = here.words("stop", "cold", check=1)
        assert "a snapshot is being made or loaded" in words
        words = here.words("snapshot", "create", "cold", "other", check=1)
        assert "a snapshot is being made or loaded" in words
        assert names(here, "cold") == []
    finally:
        os.kill(pid, signal.SIGCONT)
    assert state(here) == "paused"
    assert names(here, "cold") == []
    assert not under_way(here, "cold")
    here.run("kill", "cold")


FULL = """
set -e
q() { "$PYTHON" -m qemuctl "$@" </dev/null; }
mount -t tmpfs -o size=32m tmpfs "$1"
qemu-img create -q -f qcow2 "$1/data.qcow2" 64M
q create full --image tiny --memory 256M --disk "path=$1/data.qcow2"
trap 'q kill full' EXIT
q start full --wait
q snapshot create full x && exit 9
"$PYTHON" -c "$BLIND" && exit 9
q snapshot ls full --json
q ls --json | grep state
mount -o remount,size=400m "$1"
q exec full -- dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync
q snapshot create full x
q snapshot revert full x
q ls
"""
# As if the room had gone only after we looked.
BLIND = """
import sys
from qemuctl.snapshots import online

async def looked(*_): pass
online.check_room = looked
sys.argv = ["qemuctl", "snapshot", "create", "full", "x"]
from qemuctl.cli.main import main
main()
"""


def test_a_full_disk_is_told_and_the_vm_goes_on(here: Home, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        [*in_small_mounts("a full disk"), "sh", "-c", FULL, "sh", small],
        env=here.env | {"PYTHON": sys.executable, "BLIND": BLIND},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, timeout=150,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, said
    assert "of room for" in said
    assert "--disk-only needs next to none" in said
    assert "Error while writing VM state" in said
    assert "0 left there" in said
    assert "\n[]\n" in said
    assert '"state": "running"' in said
    assert "full is running, as of x" in said
