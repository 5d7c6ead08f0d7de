"""Disks of a running VM, as its guest sees them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.guest.conftest import Home
from tests.guest.disks import (
    device,
    everything,
    free_ports,
    inside,
    listed,
    nodes,
    spec_of,
)


def test_data_outlives_removal_and_adding_again(shared: Home, web: str) -> None:
    done = json.loads(
        shared.text("disk", "add", web, "--size", "64M", "--target", "vdb", "--json")
    )
    assert (done["live"], done["configured"]) == (True, True)
    name = done["guest"]["device"]
    assert device(shared, web, "vdb") == name
    assert f"65536 {name}" in inside(shared, web, "cat /proc/partitions")
    assert "id: vdb" in spec_of(shared, web)
    written = inside(
        shared, web,
        f"dd if=/dev/urandom of=/dev/{name} bs=1M count=20 conv=fsync 2>/dev/null; "
        f"dd if=/dev/{name} bs=1M count=20 2>/dev/null | sha256sum",
    )  # fmt: skip

    words = shared.words("disk", "rm", web, "vdb")
    assert f"{done['path']} stays" in words
    assert name not in inside(shared, web, "cat /proc/partitions").split()
    assert "vdb" not in spec_of(shared, web)
    assert not {"vdb", "vdb-file"} & nodes(shared, web)

    shared.run("disk", "add", web, "--path", done["path"], "--target", "vdb")
    name = device(shared, web, "vdb")
    read = inside(
        shared, web, f"dd if=/dev/{name} bs=1M count=20 2>/dev/null|sha256sum"
    )
    assert read == written

    words = shared.words("disk", "resize", web, "vdb", "+64M")
    assert "64M → 128M, seen as" in words
    assert inside(shared, web, f"cat /sys/block/{name}/size") == str(128 * 2048)
    assert "size: 128M" in spec_of(shared, web)
    before = everything(shared, web)
    for wrong in ("64M", "+1", "1Q"):
        shared.words("disk", "resize", web, "vdb", wrong, check=2)
    assert everything(shared, web) == before

    shared.run("disk", "rm", web, "vdb", "--delete")
    assert not Path(done["path"]).exists()
    assert "vdb" not in Path(done["path"]).parent.parent.joinpath("made").read_text()


def test_a_scsi_disk_brings_its_controller(shared: Home, web: str) -> None:
    before = free_ports(shared, web)
    words = shared.words(
        "disk", "add", web, "--size", "8M", "--bus", "scsi", "--target", "s1"
    )
    assert "s1, seen as sd" in words
    assert free_ports(shared, web) == before - 1
    assert "s2, seen as sd" in shared.words(
        "disk", "add", web, "--size", "8M", "--bus", "scsi", "--target", "s2"
    )
    assert free_ports(shared, web) == before - 1
    assert "8M → 16M, seen as sd" in shared.words("disk", "resize", web, "s1", "16M")
    for target in ("s1", "s2"):
        shared.run("disk", "rm", web, target, "--delete")
    assert inside(shared, web, "ls /sys/block | grep -c sd", check=1) == "0"


def test_limits_are_set_now_and_at_the_next_start(shared: Home, web: str) -> None:
    shared.run("disk", "set", web, "disk0", "--iops", 50, "--bps", "2M")
    assert listed(shared, web)["disk0"]["live"]["iops"] == 50
    assert "bps: 2M" in spec_of(shared, web)
    # A limit that nobody feels is none: 1 MiB in requests of 4 KiB takes 5 s.
    data = device(shared, web, "data")
    took = inside(
        shared, web,
        f"a=$(cut -d. -f1 /proc/uptime); dd if=/dev/{data} of=/dev/null bs=4k "
        "count=256 iflag=direct 2>/dev/null; echo $(($(cut -d. -f1 /proc/uptime) - a))",
    )  # fmt: skip
    assert 3 <= int(took) < 60
    shared.run("disk", "set", web, "disk0", "--iops", 0)
    now = listed(shared, web)["disk0"]["live"]
    assert (now["iops"], now["bytes_per_second"]) == (None, 2 << 20)
    assert "iops" not in spec_of(shared, web)
    shared.run("disk", "set", web, "disk0", "--bps", 0, "--live")
    assert "bps: 2M" in spec_of(shared, web)
    shared.run("disk", "set", web, "disk0", "--bps", 0)
    shared.run("disk", "set", web, "disk0", check=2)

    shared.run(
        "create",
        "lim",
        "--disk",
        "size=1M,iops=30",
        "--disk",
        "size=1M,bus=scsi,bps=1M",
    )
    shared.run("start", "lim", "--paused")
    now = {name: disk["live"] for name, disk in listed(shared, "lim").items()}
    assert (now["disk0"]["iops"], now["disk0"]["bytes_per_second"]) == (30, None)
    assert (now["disk1"]["iops"], now["disk1"]["bytes_per_second"]) == (None, 1 << 20)
    shared.run("kill", "lim")
    shared.run("rm", "lim")


def test_live_and_config_go_apart(shared: Home, web: str) -> None:
    spec = spec_of(shared, web)
    shared.run("disk", "add", web, "--size", "1M", "--target", "now", "--live")
    assert spec_of(shared, web) == spec
    assert device(shared, web, "now")
    shared.run("disk", "add", web, "--size", "1M", "--target", "later", "--config")
    assert device(shared, web, "later") == ""
    disks = listed(shared, web)
    assert (disks["now"]["configured"], disks["later"]["live"]) == (False, None)
    # The next start has no use for its name, but it has it now.
    assert "the id is in use: now" in shared.words(
        "disk", "add", web, "--size", "1M", "--target", "now", check=1
    )
    shared.run("disk", "rm", web, "later")
    shared.run("disk", "rm", web, "now", "--delete")
    shared.run("disk", "rm", web, "disk0", "--live")
    assert spec_of(shared, web) == spec
    assert device(shared, web, "data") == ""
    file = shared.path / "state/vms/web/disks/disk0.qcow2"
    shared.run("disk", "add", web, "--path", file, "--target", "disk0", check=1)
    shared.run("disk", "rm", web, "disk0", "--config")
    shared.run(
        "disk", "add", web, "--path", file, "--target", "disk0", "--serial", "data"
    )
    assert device(shared, web, "data")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Images that no VM should get."""
    for name in ("good.qcow2", "other.qcow2", "corrupt.qcow2"):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / name, "1M"],
            check=True,
        )
    content = (tmp_path / "good.qcow2").read_bytes()
    (tmp_path / "header.raw").write_bytes(content)
    (tmp_path / "nameless").write_bytes(bytes(1 << 20))
    # The bit by which QEMU marks a broken one, which it then opens read-only.
    broken = content[:79] + b"\x02" + content[80:]
    (tmp_path / "corrupt.qcow2").write_bytes(broken)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("--size 1M --target disk0", 1, "the id is in use: disk0"),
        ("--size 1M --target port1", 2, "a part of every VM"),
        ("--size 1M --target ../x", 2, "not an id: '../x'"),
        ("--size 1M --target Vdb,x=y", 2, "not an id"),
        ("--size 1M --bus sata", 1, "use --bus virtio or scsi"),
        ("--size 1M --bus floppy", 2, "virtio"),
        ("--size 1M --path {odd}/good.qcow2", 2, "either --size or --path"),
        ("--size 0", 2, "too small"),
        ("--path {odd}/nameless", 2, "add format: qcow2 or raw"),
        ("--path {odd}/header.raw", 1, "it has a qcow2 header"),
        ("--path {odd}/nameless --format qcow2", 1, "not a qcow2 image"),
        ("--path {odd}/corrupt.qcow2", 1, "corrupt"),
        ("--path {odd}/nowhere.raw", 1, "does not exist"),
        ("--path {home}/state/vms/web/disks/disk0.qcow2", 1, "used twice|open already"),
    ],
)
def test_what_cannot_be_changes_nothing(
    shared: Home, web: str, odd: Path, arguments: str, status: int, words: str
) -> None:
    before = everything(shared, web)
    given = arguments.format(odd=odd, home=shared.path).split()
    said = shared.words("disk", "add", web, *given, check=status)
    assert any(word in said for word in words.split("|")), said
    assert everything(shared, web) == before


def test_a_disk_of_another_vm_is_not_shared(shared: Home, web: str, odd: Path) -> None:
    shared.run("create", "peer", "--memory", "128M", "--nic", "none", "--cdrom", "")
    shared.run("start", "peer")
    shared.run("disk", "add", "peer", "--path", odd / "good.qcow2", "--target", "p")
    before = everything(shared, web)
    for more in ([], ["--readonly"]):
        words = shared.words(
            "disk", "add", web, "--path", odd / "good.qcow2", *more, check=1
        )
        assert "the VM peer is using this disk image" in words
    # Nor by somebody who is no VM.
    holder = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", odd / "other.qcow2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    try:
        holder.stdout.read(1)
        words = shared.words("disk", "add", web, "--path", odd / "other.qcow2", check=1)
    finally:
        holder.communicate(b"quit\n")
    assert "in use by another process" in words
    assert everything(shared, web) == before
    shared.run("kill", "peer")
    shared.run("rm", "peer")
    shared.run("disk", "add", web, "--path", odd / "good.qcow2", "--target", "p")
    shared.run("disk", "rm", web, "p")


def test_a_full_bus_says_what_makes_room(shared: Home, web: str) -> None:
    free = free_ports(shared, web)
    for number in range(free):
        shared.run("disk", "add", web, "--size", "1M", "--target", f"f{number}")
    assert free_ports(shared, web) == 0
    before = everything(shared, web)
    words = shared.words("disk", "add", web, "--size", "1M", check=1)
    assert "no port is free" in words
    assert "hotplug_ports: 8" in words
    assert everything(shared, web) == before
    for number in range(free):
        shared.run("disk", "rm", web, f"f{number}", "--delete")
    assert free_ports(shared, web) == free


def test_a_vm_that_does_not_run_says_what_would_work(shared: Home, web: str) -> None:
    shared.run("pause", web)
    before = everything(shared, web)
    for command in (
        ["add", web, "--size", "1M"], ["rm", web, "disk0"],
        ["resize", web, "disk0", "1G"], ["set", web, "disk0", "--iops", "1"],
    ):  # fmt: skip
        words = shared.words("disk", *command, check=1)
        assert "the VM is paused" in words
        assert "qemuctl resume web" in words
    assert everything(shared, web) == before
    shared.run("resume", web)
    shared.run("create", "none", "--disk", "size=1M")
    words = shared.words("disk", "add", "none", "--size", "1M", "--live", check=1)
    assert "qemuctl start none" in words
    shared.run("disk", "resize", "none", "disk0", "2M")
    shared.run("disk", "add", "none", "--size", "1M", "--iops", 5)
    assert "size: 2M" in spec_of(shared, "none")
    assert "id: disk1" in spec_of(shared, "none")
    shared.run("disk", "rm", "none", "disk0")
    shared.run("disk", "rm", "none", "disk0", check=1)
    shared.run("rm", "none")
