"""Clones: what they share, what they have of their own, and what a crash leaves."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qemuctl.copies.archive import export, import_
from qemuctl.copies.clone import clone
from qemuctl.errors import (
    ImageError,
    ImageInUse,
    NameInUse,
    NotFound,
    SpecError,
    StateError,
)
from qemuctl.image.chain import chain
from qemuctl.image.overlay import freeze
from qemuctl.image.snapshots import snapshot_create, snapshots
from qemuctl.paths import VmPaths, images_dir, vms_dir
from qemuctl.process import take
from qemuctl.registry import removal, rename, vms
from qemuctl.registry.disks.disk_files import make_disks, make_seed
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.file_users import needing
from qemuctl.spec import CloudInit, Disk, Nic, Spec
from tests.unit.disk_images import MIB, content, digest, qcow2, raw, write
from tests.unit.stores import PATTERN, add_image, add_vm, everything, leading_elsewhere

pytestmark = pytest.mark.usefixtures("bare_home")

ROOT = digest(PATTERN.ljust(MIB, b"\0"))
WRITTEN = digest(b"\x07" * 4096 + bytes(2 * MIB - 4096))


@pytest.fixture
def web() -> VmPaths:
    """A VM on an image, with a data disk that was written to."""
    add_image("base")
    paths = add_vm("web", image="base", disks=(Disk(size=2 * MIB),))
    write(paths.disk(1, "qcow2"), 0, 4096, 7)
    return paths


@pytest.fixture
def locked(web: VmPaths) -> Iterator[VmPaths]:
    """A VM that is on: somebody has its lock."""
    fd = take(web.lock)
    assert fd is not None
    yield web
    os.close(fd)


def paths_of(name: str) -> VmPaths:
    return vms.find(name)


def files(path: Path) -> list[Path]:
    return [layer.path for layer in chain(path, "qcow2")]


def folders() -> list[str]:
    return sorted(path.name for path in vms_dir().iterdir())


def both(paths: VmPaths) -> tuple[str, str]:
    return content(paths.disk(0, "qcow2")), content(paths.disk(1, "qcow2"))


async def test_a_full_clone_has_the_content_and_depends_on_nothing(
    web: VmPaths,
) -> None:
    copied = await clone("web", "new")
    assert [disk.target for disk in copied] == ["disk0", "disk1"]
    new = paths_of("new")
    assert files(new.disk(0, "qcow2")) == [new.disk(0, "qcow2")]
    removal.remove("web")
    shutil.rmtree(images_dir())
    assert both(new) == (ROOT, WRITTEN)


async def test_a_linked_clone_shares_what_there_is_and_no_more(web: VmPaths) -> None:
    assert await clone("web", "new", linked=True) == []
    new = paths_of("new")
    assert both(web) == both(new) == (ROOT, WRITTEN)
    base = web.disks / "disk1.base1.qcow2"
    assert files(new.disk(1, "qcow2")) == [new.disk(1, "qcow2"), base]
    assert files(web.disk(1, "qcow2")) == [web.disk(1, "qcow2"), base]
    assert base.stat().st_mode & 0o222 == 0
    write(web.disk(1, "qcow2"), 0, 512, 1)
    write(new.disk(1, "qcow2"), 0, 512, 2)
    assert both(web)[1] == digest(b"\1" * 512 + b"\7" * 3584 + bytes(2 * MIB - 4096))
    assert both(new)[1] == digest(b"\2" * 512 + b"\7" * 3584 + bytes(2 * MIB - 4096))


async def test_linked_again_without_writes_is_the_same_base(web: VmPaths) -> None:
    for name in ("one", "two"):
        await clone("web", name, linked=True)
    assert len(list(web.disks.glob("*.base*"))) == 2
    write(web.disk(1, "qcow2"), 4096, 512, 9)
    await clone("web", "three", linked=True)
    assert sorted(path.name for path in web.disks.glob("*.base*")) == [
        "disk0.base1.qcow2", "disk1.base1.qcow2", "disk1.base2.qcow2",
    ]  # fmt: skip
    assert both(paths_of("one")) == both(paths_of("two")) == (ROOT, WRITTEN)
    assert both(paths_of("three")) == both(web)


@pytest.mark.parametrize("linked", [False, True])
async def test_a_clone_of_a_clone_of_a_clone(web: VmPaths, linked: bool) -> None:
    for number, (source, name) in enumerate(itertools.pairwise(["web", *"abc"])):
        await clone(source, name, linked=linked)
        write(paths_of(name).disk(1, "qcow2"), MIB + number * 4096, 4096, number + 1)
    grown = b"\7" * 4096 + bytes(MIB - 4096)
    for number, name in enumerate("abc"):
        grown += bytes([number + 1]) * 4096
        assert both(paths_of(name)) == (ROOT, digest(grown.ljust(2 * MIB, b"\0")))
    assert both(web) == (ROOT, WRITTEN)
    assert len(files(paths_of("c").disk(1, "qcow2"))) == (4 if linked else 1)
    assert needing(web.state) == ([*"abc"] if linked else [])


@pytest.mark.parametrize("linked", [False, True])
async def test_disks_of_the_users_and_raw_ones_are_copied_and_read_only_ones_shared(
    tmp_path: Path, linked: bool
) -> None:
    own = qcow2(tmp_path / "own.qcow2", b"own".ljust(MIB, b"."))
    shared = raw(tmp_path / "shared.raw", bytes(MIB))
    web = add_vm(
        "web",
        disks=(
            Disk(size=MIB, format="raw"), Disk(path=str(own)),
            Disk(path=str(shared), readonly=True), Disk(size=MIB),
        ),
        cdrom=str(shared),
    )  # fmt: skip
    web.disk(0, "raw").write_bytes(b"raw".ljust(MIB, b"."))
    copied = await clone("web", "new", linked=linked)
    targets = ["disk0", "disk1"] if linked else ["disk0", "disk1", "disk3"]
    assert [disk.target for disk in copied] == targets
    new, spec = paths_of("new"), vms.load("new")
    assert new.disk(0, "raw").read_bytes() == web.disk(0, "raw").read_bytes()
    assert content(new.disk(1, "qcow2")) == digest(b"own".ljust(MIB, b"."))
    assert spec.disks[1] == Disk(path=str(new.disk(1, "qcow2")))
    assert spec.disks[2].path == spec.cdrom == str(shared)
    assert not own.with_name("own.base1.qcow2").exists()
    write(own, 0, 512, 1)
    await clone("new", "newer", linked=linked)
    newest = vms.load("newer").disks[1].path or ""
    assert content(Path(newest)) == digest(b"own".ljust(MIB, b"."))


async def test_a_trusted_disk_is_copied_from_wherever_it_leads(tmp_path: Path) -> None:
    top = leading_elsewhere(tmp_path)
    add_vm("web", trust_backing=True, disks=(Disk(path=str(top)),))
    await clone("web", "new")
    await export("web", tmp_path / "web.tar")
    await import_(tmp_path / "web.tar", name="other")
    for name in ("new", "other"):
        disk = paths_of(name).disk(0, "qcow2")
        assert files(disk) == [disk]
        assert content(disk) == ROOT


async def test_a_disk_of_the_users_that_is_lost_is_named(tmp_path: Path) -> None:
    own = raw(tmp_path / "own.raw", bytes(MIB))
    add_vm("web", disks=(Disk(path=str(own)),))
    own.unlink()
    with pytest.raises(ImageError, match=f"does not exist: {own}"):
        await clone("web", "new")
    assert folders() == ["web"]


async def test_a_disk_that_is_not_made_yet_is_made_by_the_clones_own_start() -> None:
    vms.create(Spec(name="web", disks=(Disk(size=MIB),)))
    await clone("web", "new")
    new = paths_of("new")
    assert not new.disks.exists()
    await make_disks(vms.load("new"), new, None)
    assert content(new.disk(0, "qcow2")) == digest(bytes(MIB))


async def test_fixed_addresses_are_dropped_and_all_else_is_kept() -> None:
    nics = (Nic(mac="52:54:00:00:00:01"), Nic(type="none"))
    add_vm("web", nics=nics, memory={"size": 64 * MIB})
    await clone("web", "new")
    spec = vms.load("new")
    assert [nic.mac for nic in spec.nics] == [None, None]
    before = vms.load("web").model_copy(update={"name": "new"})
    assert spec == before.model_copy(update={"nics": spec.nics})


async def test_comments_are_kept_where_the_text_says_the_same(tmp_path: Path) -> None:
    text = "# mine\nname: web  # the one\ndisks:\n- size: 1M  # data\n"
    add_vm("web", text)
    for source, name in itertools.pairwise(["web", "a", "b"]):
        await clone(source, name)
        written = paths_of(name).spec.read_text()
        assert written == text.replace("name: web", f"name: {name}")


async def test_a_path_beside_the_source_leads_there_from_its_clone_too() -> None:
    web = add_vm("web", "name: web  # mine\ncdrom: own.iso\n")
    await clone("web", "new")
    assert vms.load("new").cdrom == str(web.state / "own.iso")


async def test_comments_of_a_clone_with_disks_of_its_own_are_kept(
    tmp_path: Path,
) -> None:
    own = raw(tmp_path / "own.raw", bytes(MIB))
    add_vm("web", disks=(Disk(path=str(own)),))
    await clone("web", "a")
    text = f"# mine\n{paths_of('a').spec.read_text()}"
    paths_of("a").spec.write_text(text)
    await clone("a", "b")
    assert paths_of("b").spec.read_text() == text.replace("name: a", "name: b")
    own_of_b = vms.load("b").disks[0].path
    assert own_of_b == str(paths_of("b").disk(0, "raw"))


async def test_a_clone_has_a_seed_and_an_identity_of_its_own() -> None:
    web = add_vm("web", cloud_init=CloudInit(hostname="one"))
    await clone("web", "new")
    new = paths_of("new")
    assert new.seed.exists()
    assert new.instance.read_text() != web.instance.read_text()


async def test_a_clone_is_another_instance_also_where_the_user_named_one(
    tmp_path: Path,
) -> None:
    meta = tmp_path / "meta-data"
    meta.write_text("instance-id: mine\nlocal-hostname: here\n")
    add_image("base", cloud_init=True)
    web = add_vm("web", image="base", cloud_init=CloudInit(meta_data=str(meta)))
    assert b"instance-id: mine" in web.seed.read_bytes()
    await clone("web", "new")
    new = paths_of("new")
    for again in (False, True):
        if again:  # its next start makes the seed anew after a change
            os.utime(new.spec)
            spec = vms.load("new")
            make_seed(spec, new, image_of(spec))
        content = new.seed.read_bytes()
        assert b"mine" not in content
        assert b"local-hostname: here" in content
        assert new.instance.read_text().split()[0].encode() in content


async def test_what_was_installed_is_not_installed_again_in_a_clone() -> None:
    web = add_vm("web", boot={"once": "cdrom"}, cdrom="/a.iso")
    await clone("web", "before")
    web.booted.touch()
    await clone("web", "after")
    assert not paths_of("before").booted.exists()
    assert paths_of("after").booted.exists()


async def test_a_clone_that_cannot_be_is_refused_and_nothing_changes(
    web: VmPaths,
) -> None:
    add_vm("db")
    before = everything(vms_dir())
    for name in ("../x", "", "a b", "x" * 65):
        with pytest.raises(SpecError, match="name"):
            await clone("web", name, linked=True)
    for name in ("db", "web"):
        with pytest.raises(NameInUse):
            await clone("web", name, linked=True)
    with pytest.raises(NotFound):
        await clone("wep", "new")
    assert everything(vms_dir()) == before


async def test_a_vm_that_is_on_is_not_cloned(locked: VmPaths) -> None:
    with pytest.raises(StateError, match="cannot clone web: the VM is on") as caught:
        await clone("web", "new", linked=True)
    assert caught.value.hint == "stop it first with: qemuctl stop web"
    assert folders() == ["web"]


async def test_two_clones_of_one_name_at_once_are_one_clone_and_one_error(
    web: VmPaths,
) -> None:
    add_vm("db", disks=(Disk(size=MIB),))
    done = await asyncio.gather(
        clone("web", "new"), clone("db", "new"), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in done) == ["NameInUse", "list"]
    assert folders() == ["db", "new", "web"]


async def test_what_a_linked_clone_needs_is_neither_removed_nor_renamed(
    web: VmPaths,
) -> None:
    for name in ("one", "two"):
        await clone("web", name, linked=True)
    changes: tuple[Callable[[], object], ...] = (
        lambda: removal.remove("web"),
        lambda: removal.remove("web", keep_disks=True),
        lambda: rename.rename("web", "site"),
    )
    for change in changes:
        with pytest.raises(StateError, match="made from its own: one, two"):
            change()
    rename.rename("one", "uno")
    assert both(paths_of("uno")) == (ROOT, WRITTEN)
    removal.remove("uno")
    removal.remove("two")
    rename.rename("web", "site")
    assert both(paths_of("site")) == (ROOT, WRITTEN)
    removal.remove("site")
    assert folders() == []


async def test_kept_disks_still_need_what_they_were_made_from(web: VmPaths) -> None:
    await clone("web", "new", linked=True)
    kept = removal.remove("new", keep_disks=True)
    assert kept is not None
    assert content(kept / "disk1.qcow2") == WRITTEN
    with pytest.raises(StateError, match=f"the kept disks in {kept}"):
        removal.remove("web")
    assert needing(images_dir() / "base") == ["web", f"the kept disks in {kept}"]
    shutil.rmtree(kept)
    again = removal.remove("web", keep_disks=True)
    assert again is not None
    assert content(again / "disk0.qcow2") == ROOT


async def test_kept_disks_of_two_vms_of_one_name_lie_side_by_side() -> None:
    kept = []
    for _ in range(2):
        add_vm("web", disks=(Disk(size=MIB),))
        kept.append(removal.remove("web", keep_disks=True))
    assert [path.name for path in kept if path] == ["web", "web-2"]
    assert removal.remove(add_vm("web").name, keep_disks=True) is None


async def test_a_disk_with_snapshots_is_not_linked_for_they_would_be_out_of_reach(
    web: VmPaths,
) -> None:
    disk = web.disk(1, "qcow2")
    await snapshot_create(disk, "before")
    with pytest.raises(ImageError, match="snapshots would go out of reach"):
        await clone("web", "new", linked=True)
    assert folders() == ["web"]
    assert [one.name for one in snapshots(disk)] == ["before"]
    await clone("web", "new")


async def test_a_disk_that_is_in_use_is_not_linked(web: VmPaths) -> None:
    disk = web.disk(1, "qcow2")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["qemu-io", "-f", "qcow2", str(disk)], **pipes) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.read(8) == b"qemu-io>"
        with pytest.raises(ImageInUse):
            await clone("web", "new", linked=True)
        user.stdin.close()
    assert folders() == ["web"]
    assert files(disk) == [disk]


async def test_too_long_a_chain_is_not_made_longer(web: VmPaths) -> None:
    disk = web.disk(1, "qcow2")
    for number in range(50):
        freeze(disk)
        write(disk, 0, 512, number)
    with pytest.raises(ImageError, match="more than 50 files"):
        freeze(disk)
    assert len(files(disk)) == 51


async def test_an_imported_vm_that_was_renamed_still_has_its_disks(
    web: VmPaths,
) -> None:
    await export("web", web.state.parent / "web.tar")
    await import_(web.state.parent / "web.tar", name="new")
    (web.state.parent / "web.tar").unlink()
    rename.rename("new", "newer")
    assert both(paths_of("newer")) == (ROOT, WRITTEN)
    disks = vms.load("newer").disks
    assert [Path(disk.path or "").parent for disk in disks] == [
        paths_of("newer").disks
    ] * 2
