"""What QEMU tells of a disk or card, against what is written of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qemuctl.hotplug.disks.results import LiveDisk
from qemuctl.paths import VmPaths
from qemuctl.qmp.net import Card, HostForward
from qemuctl.spec import Disk, Forward, Nic
from qemuctl.vm.spec_diff import _Disks, _forwards, _kind

MIB = 1 << 20


@pytest.fixture
def paths(bare_home: Path) -> VmPaths:
    return VmPaths.of("a")


def live(paths: VmPaths, **changes: Any) -> LiveDisk:
    disk = LiveDisk(
        id="data",
        serial="data",
        driver="virtio-blk-pci",
        bus="port1",
        path=paths.disk_file("data", "qcow2"),
        size_bytes=64 * MIB,
        used_bytes=0,
        readonly=False,
        iops=None,
        bytes_per_second=None,
        io_status="ok",
        leaving=False,
    )
    return dataclasses.replace(disk, **changes)


def found(
    paths: VmPaths, now: LiveDisk, before: Disk | None, after: Disk | None
) -> dict[str, tuple[str, str]]:
    return _Disks(
        live={now.id: now},
        started={} if before is None else {now.id: before},
        configured={} if after is None else {now.id: after},
        fresh=set(),
        root=None,
        paths=paths,
    ).found()


WRITTEN = Disk(id="data", size=64 * MIB)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"iops": 5}, {"iops": ("5", "none")}),
        ({"bytes_per_second": 2 * MIB}, {"bps": ("2M", "none")}),
        ({"size_bytes": 72 * MIB}, {"size": ("72M", "64M")}),
        ({"driver": "scsi-hd"}, {"bus": ("scsi", "virtio")}),
        ({"readonly": True}, {"readonly": ("true", "false")}),
        ({"serial": "old"}, {"serial": ("old", "data")}),
        ({"serial": None}, {}),
        ({"path": Path("json:{}")}, {}),
    ],
)
def test_a_disk_is_what_qemu_says(
    paths: VmPaths, changes: dict[str, Any], expected: dict[str, tuple[str, str]]
) -> None:
    pairs = found(paths, live(paths, **changes), WRITTEN, WRITTEN)
    assert pairs == {f"disks.data.{key}": pair for key, pair in expected.items()}


def test_another_file_is_a_difference(paths: VmPaths, tmp_path: Path) -> None:
    other = live(paths, path=tmp_path / "other.qcow2")
    pairs = found(paths, other, WRITTEN, WRITTEN)
    file = paths.disk_file("data", "qcow2")
    assert pairs == {"disks.data.path": (str(other.path), str(file))}


def test_what_qemu_does_not_tell_is_that_of_the_start(paths: VmPaths) -> None:
    after = WRITTEN.model_copy(update={"cache": "none"})
    expected = {"disks.data.cache": ("none", "unsafe")}
    before = after.model_copy(update={"cache": "none"})
    after = after.model_copy(update={"cache": "unsafe"})
    assert found(paths, live(paths), before, after) == expected


def test_what_no_spec_knows_was_given_otherwise(paths: VmPaths) -> None:
    """The seed, or a device of `extra_args`."""
    assert found(paths, live(paths), None, None) == {}
    pair = {"disks.data": ("present", "none")}
    assert found(paths, live(paths), WRITTEN, None) == pair


def test_a_free_port_is_the_one_that_the_kernel_chose() -> None:
    now = HostForward(
        netdev="net0", protocol="tcp", address="127.0.0.1", port=4711, guest_port=80
    )
    assert _forwards([now], [Forward(guest_port=80)]) == {}
    other = _forwards([now], [Forward(host_port=8080, guest_port=80)])
    assert other == {"forward": ("127.0.0.1:4711->80", "8080:80")}


@pytest.mark.parametrize(
    ("model", "wanted", "expected"),
    [
        ("virtio-net-pci", "virtio", {}),
        ("virtio-net-pci", "virtio-net-pci", {}),
        ("e1000", "virtio", {"model": "e1000"}),
        ("virtio-net-pci", "e1000", {"model": "virtio-net-pci"}),
    ],
)
def test_a_card_has_the_model_that_qemu_says(
    model: str, wanted: str, expected: dict[str, str]
) -> None:
    card = Card(id="lan", model=model, mac="", type="stream")
    assert _kind(card, Nic(model=wanted)) == expected | {"type": "socket"}
