"""Which files a VM's disks may be, and that none is lost or written to by two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qemuctl.copies.clone import clone
from qemuctl.errors import ImageError, SpecError, StateError
from qemuctl.image.overlay import create_overlay
from qemuctl.paths import VmPaths, images_dir
from qemuctl.registry import removal, vms
from qemuctl.registry.disks.disk_files import (
    check_disks_kept,
    check_media,
    disk_files,
    make_disks,
    make_seed,
)
from qemuctl.registry.disks.resolve import image_of, resolved
from qemuctl.registry.file_users import check_not_written, needing
from qemuctl.spec import CloudInit, Disk, Spec, load_spec
from tests.unit.disk_images import MIB, qcow2, raw
from tests.unit.stores import PATTERN, add_image, add_vm

pytestmark = pytest.mark.usefixtures("bare_home")


async def test_a_lost_disk_is_not_made_anew(tmp_path: Path) -> None:
    add_image("base")
    paths = add_vm("web", image="base", disks=(Disk(size=MIB),))
    spec = load_spec(paths.spec)
    for number, disk in enumerate(disk_files(spec, paths, image_of(spec))):
        away = disk.path.rename(tmp_path / f"{number}")
        with pytest.raises(ImageError, match="this disk of the VM is gone") as caught:
            await make_disks(spec, paths, image_of(spec))
        assert str(disk.path) in caught.value.message
        with pytest.raises(ImageError, match="does not exist"):
            await clone("web", "new")
        away.rename(disk.path)
    paths.disk(1, "qcow2").unlink()
    paths.made.write_text("disk0.qcow2\n")  # as the hint says
    await make_disks(spec, paths, image_of(spec))
    assert paths.disk(1, "qcow2").exists()


def written_by(path: Path, *, readonly: bool = False) -> None:
    spec = Spec(name="x", disks=(Disk(path=str(path), readonly=readonly),))
    check_not_written(spec, VmPaths.of("x"))


async def test_nobody_writes_to_what_others_have_or_are_made_from(
    tmp_path: Path,
) -> None:
    disk = add_image("base").disk
    assert disk is not None
    paths = add_vm("web", disks=(Disk(size=MIB),))
    mine = qcow2(tmp_path / "mine.qcow2", PATTERN)
    link, name = tmp_path / "link.qcow2", tmp_path / "name.qcow2"
    link.symlink_to(disk)
    name.hardlink_to(mine)
    written_by(mine)
    top = tmp_path / "top.qcow2"
    create_overlay(top, mine, "qcow2")
    add_vm("db", disks=(Disk(path=str(top)),), trust_backing=True)
    for path, reason in (
        (disk, "in the image store"),
        (link, "in the image store"),
        (paths.disk(0, "qcow2"), "belongs to the VM web"),
        (mine, "made from it: db"),
        (name, "made from it: db"),
    ):
        with pytest.raises(SpecError, match=reason) as caught:
            written_by(path)
        assert caught.value.key == "disks[0]"
        written_by(path, readonly=True)


def test_one_file_is_not_two_disks(tmp_path: Path) -> None:
    one, other = raw(tmp_path / "a.raw", PATTERN), tmp_path / "b.raw"
    other.symlink_to(one)
    disks = (Disk(path=str(one)), Disk(path=str(other)))
    with pytest.raises(SpecError, match="disk0 and disk1 have one file"):
        check_media(Spec(name="x", disks=disks))
    both = tuple(disk.model_copy(update={"readonly": True}) for disk in disks)
    check_media(Spec(name="x", disks=both))


@pytest.mark.parametrize("where", ["log", "disk", "folder"])
def test_a_disk_is_not_made_from_any_file_of_a_vm(where: str, tmp_path: Path) -> None:
    paths = add_vm("web", disks=(Disk(size=MIB, format="raw"),))
    below = {
        "log": paths.state / "events.out",
        "disk": paths.disk(0, "raw"),
        "folder": tmp_path / "disks" / "disk0.base1.qcow2",
    }[where]
    if not below.exists():
        below.parent.mkdir(exist_ok=True)
        raw(below, PATTERN)
    top = tmp_path / "top.qcow2"
    create_overlay(top, below, "raw")
    spec = Spec(name="x", disks=(Disk(path=str(top)),))
    with pytest.raises(ImageError, match="lies elsewhere"):
        check_media(spec)
    check_media(spec.model_copy(update={"trust_backing": True}))


def test_who_cannot_be_read_keeps_what_it_may_need(tmp_path: Path) -> None:
    image = add_image("base")
    paths = add_vm("web", image="base")
    broken = paths.spec.read_text() + "nonsense: {"
    paths.spec.write_text(broken)
    paths.disk(0, "qcow2").write_bytes(b"damaged")
    assert needing(image.folder) == ["web, whose spec cannot be read"]
    assert needing(images_dir() / "other") == []
    add_vm("db")
    removal.remove("db")  # it is not named
    add_vm("base", disks=(Disk(size=MIB),))
    with pytest.raises(StateError, match="whose spec cannot be read"):
        removal.remove("base")


def test_a_folder_without_a_spec_needs_nothing_but_its_disks() -> None:
    image = add_image("base")
    paths = add_vm("web", image="base")
    paths.spec.unlink()
    assert needing(image.folder) == ["web"]
    paths.disk(0, "qcow2").unlink()
    assert needing(image.folder) == []


def test_a_missing_layer_hides_none_above_it(tmp_path: Path) -> None:
    disk = add_image("base").disk
    assert disk is not None
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    create_overlay(middle, disk, "qcow2")
    create_overlay(top, middle, "qcow2")
    add_vm("web", disks=(Disk(path=str(top)),))
    assert needing(disk.parent) == ["web"]
    disk.rename(tmp_path / "away")
    assert needing(disk.parent) == ["web"]
    assert needing(tmp_path) == ["web"]


def test_a_copied_disk_keeps_its_place(tmp_path: Path) -> None:
    paths = VmPaths.of("web")
    path = paths.disk(1, "qcow2")
    path.parent.mkdir(parents=True)
    qcow2(path, PATTERN)
    before = Spec(name="web", disks=(Disk(path=str(path)),))
    with pytest.raises(SpecError, match="its place, size and format cannot change"):
        check_disks_kept(before, Spec(name="web"), paths, (None, None))
    check_disks_kept(before, before, paths, (None, None))


def test_tiny_has_no_cloud_init() -> None:
    spec = Spec(name="x", image="tiny", cloud_init=CloudInit(user="me"))
    with pytest.raises(SpecError, match="tiny has no cloud-init"):
        resolved(spec, VmPaths.of("x"), None)


def test_an_edit_counts_also_where_the_clock_was_set_back() -> None:
    web = add_vm("web", cloud_init=CloudInit(hostname="one"))
    image = image_of(vms.load("web"))
    made = web.seed.stat()
    make_seed(vms.load("web"), web, image)
    assert web.seed.stat() == made
    text = web.spec.read_text()
    vms.replace("web", text.replace("hostname: one", "hostname: two"))
    os.utime(web.spec, (1000, 1000))
    for _ in range(2):
        make_seed(vms.load("web"), web, image)
        assert b"hostname: two" in web.seed.read_bytes()
    assert web.seed.stat().st_mtime == 1000
