"""A template's key: another one when anything that matters is another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qemuctl.host import Accel, Host, inspection
from qemuctl.host.discovery import from_json
from qemuctl.image import store
from qemuctl.spec import parse_spec
from qemuctl.templates import key as template_key
from qemuctl.templates.eligible import template_spec
from qemuctl.templates.key import Recipe, compute_key
from tests.unit.disk_images import overlay, raw
from tests.unit.stores import add_image

RECORDED = Path(__file__).parent.parent / "golden/qemu-7.2.json"


class World:
    """A host with a QEMU, a kernel, an image and two disks, and a spec of these."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("qemu", "kernel", "initrd", "cd.iso", "firmware"):
            raw(folder / name, name.encode())
        raw(folder / "below.raw", bytes(65536))
        overlay(folder / "disk.qcow2", folder / "below.raw", "raw")
        self.accel = Accel(kind="tcg", reason="", cpu_model="max")
        self.qemu = folder / "qemu"
        self.text = f"""
name: db
memory: 256M
trust_backing: true
boot: {{kernel: {folder}/kernel, initrd: {folder}/initrd}}
cdrom: {folder}/cd.iso
disks: [{{path: {folder}/disk.qcow2, readonly: true}}]
extra_args: [-device, 'loader,file={folder}/firmware']
"""
        self.recipe = Recipe()

    def host(self, _: object) -> Host:
        binary = from_json(self.qemu, RECORDED.read_bytes())
        return Host(binary=binary, accel=self.accel)

    def key(self) -> str:
        spec = template_spec(parse_spec(self.text), "template-1")
        return compute_key(spec, self.recipe).text


@pytest.fixture
def world(bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(template_key, "inspect_host", world.host)
    return world


def test_the_same_has_the_same_key(world: World) -> None:
    key = world.key()
    assert world.key() == key
    assert len(key) == 24


@pytest.mark.parametrize(
    "name",
    ["qemu", "kernel", "initrd", "cd.iso", "disk.qcow2", "below.raw", "firmware"],
)
def test_each_file_that_the_guest_is_made_from_counts(world: World, name: str) -> None:
    key = world.key()
    with (world.folder / name).open("ab") as file:
        file.write(b"\0" * 511 + b"x")
    assert world.key() != key


def test_a_file_that_was_only_touched_is_the_same_but_for_qemu(world: World) -> None:
    key = world.key()
    for name in ("kernel", "initrd", "cd.iso", "disk.qcow2", "below.raw"):
        os.utime(world.folder / name, (1, 1))
    assert world.key() == key
    os.utime(world.qemu, (1, 1))
    assert world.key() != key


def test_another_qemu_counts(world: World) -> None:
    key = world.key()
    other = raw(world.folder / "qemu2", b"qemu")
    status = world.qemu.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    world.qemu = other
    assert world.key() != key


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("256M", "512M"),
        ("256M", "{size: 256M, max: 1G}"),
        ("name: db", "name: db\ncpu: 2"),
        ("name: db", "name: db\ncpu: {count: 1, max: 2}"),
        ("name: db", "name: db\nnics: []"),
        ("name: db", "name: db\nnics: [{mac: '52:54:00:00:00:09'}]"),
        ("name: db", "name: db\nmachine: pc"),
        ("name: db", "name: db\nsandbox: false"),
        ("name: db", "name: db\nrng: false"),
        ("disks: [", "disks: [{size: 1M}, "),
        ("extra_args: [", "extra_args: [-msg, timestamp=on, "),
    ],
)
def test_each_field_that_makes_another_machine_counts(
    world: World, old: str, new: str
) -> None:
    key = world.key()
    assert old in world.text
    world.text = world.text.replace(old, new)
    assert world.key() != key


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: db", "name: web"),
        ("name: db", "name: db\nnics: [{forward: [':22', '8080:80']}]"),
        ("name: db", "name: db\nballoon: false"),
    ],
)
def test_what_is_on_the_hosts_side_alone_does_not(
    world: World, old: str, new: str
) -> None:
    key = world.key()
    world.text = world.text.replace(old, new)
    assert world.key() == key


def test_how_it_was_got_ready_counts(world: World) -> None:
    keys = [world.key()]
    for recipe in (Recipe(wait="agent"), Recipe(run="true"), Recipe(run="false")):
        world.recipe = recipe
        keys.append(world.key())
    assert len(set(keys)) == 4


def test_under_kvm_the_hosts_processor_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_key, "cpu_model", lambda: "one")
    emulated = world.key()
    world.accel = Accel(kind="kvm", reason="", cpu_model="host")
    key = world.key()
    monkeypatch.setattr(template_key, "cpu_model", lambda: "other")
    assert len({emulated, key, world.key()}) == 3
    world.accel = Accel(kind="tcg", reason="", cpu_model="max")
    assert world.key() == emulated


def test_the_content_of_an_image_counts_and_not_when_it_was_made(world: World) -> None:
    world.text = "name: db\nimage: base\n"
    add_image("base", b"one")
    key = world.key()
    store.remove("base")
    add_image("base", b"two")
    assert world.key() != key
    store.remove("base")
    add_image("base", b"one")
    assert world.key() == key


def test_a_processor_that_changes_its_pace_is_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_image("base", kernel="k", cmdline_microvm="quiet tsc_early_khz={tsc_khz}")
    world.text = "name: db\nmachine: microvm\nimage: base\n"
    keys = set()
    for pace in (2_400_000, 2_401_000):
        monkeypatch.setattr(inspection, "tsc_khz", lambda pace=pace: pace)
        keys.add(world.key())
    assert len(keys) == 1
