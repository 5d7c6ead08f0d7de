"""Disks whose command is killed, whose guest does not let go, whose host is full."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.conftest import BOOT_SECTOR, Home
from tests.guest.disks import (
    device,
    everything,
    listed,
    nodes,
    spec_of,
)
from tests.unproven import in_small_mounts

KILLED = """
import os, sys
from qemuctl.hotplug.disks import add
from qemuctl.hotplug.bus import Bus

async def gone(*_): os._exit(9)
if sys.argv[1] == "plug":
    Bus.plug = gone
else:
    add.reconfigure = lambda *_: os._exit(9)
sys.argv = ["qemuctl", "disk", "add", "web", "--size", "1M", "--target", "cut"]
from qemuctl.cli.main import main
main()
"""


@pytest.mark.parametrize("step", ["plug", "reconfigure"])
def test_the_next_command_ends_what_a_killed_one_began(
    shared: Home, web: str, step: str
) -> None:
    before = everything(shared, web)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, step], env=shared.env, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
    )  # fmt: skip
    assert killed.returncode == 9, killed.stderr
    assert everything(shared, web) != before
    shared.run("disk", "add", web, "--size", "1M", "--target", "next")
    shared.run("disk", "rm", web, "next", "--delete")
    if step == "plug":
        assert everything(shared, web) == before
    else:  # the disk was in, only the spec did not know
        assert "id: cut" in spec_of(shared, web)
        assert device(shared, web, "cut")
        shared.run("disk", "rm", web, "cut", "--delete")
        assert spec_of(shared, web) == before[0]


@pytest.fixture
def deaf(here: Home, tmp_path: Path) -> str:
    """A VM whose guest knows nothing of hot plug."""
    disk = tmp_path / "boot.raw"
    disk.write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))
    here.run(
        "create", "deaf", "--memory", "128M", "--disk", f"path={disk}",
        "--disk", "size=1M",
    )  # fmt: skip
    here.run("start", "deaf")
    here.run("wait", "deaf", "--for", "serial:ok")
    return "deaf"


def test_what_a_guest_does_not_let_go_of_is_pending_until_it_does(
    here: Home, deaf: str
) -> None:
    words = here.words("disk", "rm", deaf, "disk0", check=1)
    assert "--force" in words
    done = here.run("disk", "rm", deaf, "disk1", "--timeout", "0.5", "--json", check=3)
    assert json.loads(done.stdout)["outcome"] == "pending"
    assert b"has not let go of disk1" in done.stderr
    assert "size: 1M" in spec_of(here, deaf)
    assert {"disk1", "disk1-file"} <= nodes(here, deaf)
    assert "leaving" in here.text("disk", "ls", deaf)
    # A reset takes it away; whoever comes next does the rest.
    here.run("reset", deaf)
    here.run("wait", deaf, "--for", "serial:ok")
    here.run("disk", "rm", deaf, "disk1")
    assert "size: 1M" not in spec_of(here, deaf)
    assert not {"disk1", "disk1-file"} & nodes(here, deaf)
    here.run("kill", deaf)


def test_what_was_pending_at_the_end_is_gone_at_the_next_start(
    here: Home, deaf: str
) -> None:
    file = here.path / "state/vms/deaf/disks/disk1.qcow2"
    here.run("disk", "rm", deaf, "disk1", "--delete", "--timeout", "0.5", check=3)
    here.run("kill", deaf)
    assert file.exists()
    here.run("start", deaf)
    assert list(listed(here, deaf)) == ["disk0"]
    assert not file.exists()
    here.run("kill", deaf)


FULL = """
set -e
q() { "$PYTHON" -m qemuctl "$@" </dev/null; }
state() { q ls --json; }
mount -t tmpfs -o size=12m tmpfs "$1"
qemu-img create -q -f qcow2 "$1/data.qcow2" 64M
q create full --image tiny --memory 256M --disk "path=$1/data.qcow2"
trap 'q kill full' EXIT
q start full --wait
q exec full -- sh -c 'dd if=/dev/urandom of=/tmp/x bs=1M count=24
    (dd if=/tmp/x of=/dev/vda bs=1M conv=fsync; echo $? >/tmp/done) >/dev/null 2>&1 &'
for i in $(seq 300); do
    q ls --json | grep -q '"io-error"' && break
    sleep 0.1
done
q ls
q info full | grep problem
q resume full 2>&1 && exit 9
q disk add full --size 1M 2>&1 && exit 9
mount -o remount,size=64m "$1"
q resume full 2>&1
q exec full -- sh -c 'while [ ! -e /tmp/done ]; do sleep 0.2; done; cat /tmp/done
    echo 3 >/proc/sys/vm/drop_caches
    sha256sum </tmp/x; dd if=/dev/vda bs=1M count=24 2>/dev/null | sha256sum'
"""


def test_a_full_disk_stops_the_guest_and_loses_nothing(
    here: Home, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        [*in_small_mounts("a full disk"), "sh", "-c", FULL, "sh", small],
        env=here.env | {"PYTHON": sys.executable}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "io-error (disk0: no space left on the host)" in said
    assert "cannot resume full: the disk fails again: disk0: no space left" in said
    assert "a disk's error has stopped the VM" in said
    assert "full is running" in said
    status, written, read = said.split()[-5::2]
    assert (status, written) == ("0", read)
