"""What is told as done is on the disk: content, then its name, then the folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from qemuctl import durable
from qemuctl.copies.archive import export, import_
from qemuctl.copies.clone import clone
from qemuctl.errors import HostError
from qemuctl.image.acquire import import_file
from qemuctl.paths import VmPaths, images_dir, vms_dir
from qemuctl.registry import removal, rename, vms
from qemuctl.snapshots import offline
from qemuctl.spec import Disk
from tests.unit.disk_images import MIB, qcow2
from tests.unit.stores import PATTERN, add_vm


class Order:
    """The inodes that were synced and the names that were given, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, object]] = []
        real = {name: getattr(os, name) for name in ("fsync", "rename", "link")}

        def fsync(fd: int) -> None:
            real["fsync"](fd)
            self.steps.append(("sync", os.fstat(fd).st_ino))

        def named(kind: str) -> Callable[..., None]:
            def give(source: object, target: object, **options: object) -> None:
                real[kind](source, target, **options)
                self.steps.append(("name", str(target)))

            return give

        monkeypatch.setattr(os, "fsync", fsync)
        for kind in ("rename", "link"):
            monkeypatch.setattr(os, kind, named(kind))

    def check(self, path: Path) -> None:
        """Fails unless a file or folder, and all in it, had been synced before it got
        its name, and the folder that has the name after it."""
        at = max(i for i, step in enumerate(self.steps) if step == ("name", str(path)))
        before = {what for kind, what in self.steps[:at] if kind == "sync"}
        after = {what for kind, what in self.steps[at:] if kind == "sync"}
        for each in (path, *path.rglob("*")):
            assert each.stat().st_ino in before, each
        assert path.parent.stat().st_ino in after


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Iterator[Order]:
    """Has been watching since the beginning of the test."""
    order = Order(monkeypatch)
    yield order
    monkeypatch.undo()


def test_a_small_file_is_the_old_or_the_new(tmp_path: Path, order: Order) -> None:
    path = tmp_path / "file"
    durable.write(path, "one")
    order.check(path)
    durable.write(path, "ü")
    order.check(path)
    assert path.read_bytes() == "ü".encode()
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_killed_writer_has_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.new").write_text("a long text, and then it was killed")
    durable.write(path, "short")
    assert path.read_text() == "short"
    durable.remove(path)
    assert [*tmp_path.iterdir()] == []
    durable.remove(path)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, "old")
    with pytest.raises(HostError, match=f"cannot write {path}"):
        with durable.prepared(path, "new"):
            raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [character * 100_000 for character in "ab"]

    def often(text: str) -> None:
        for _ in range(20):
            durable.write(path, text, durable=False)

    threads = [threading.Thread(target=often, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    for thread in threads:
        thread.join()
    assert [*tmp_path.iterdir()] == [path]


# -- what a VM and an image are made of ------------------------------------------------


@pytest.fixture
def web(bare_home: Path) -> VmPaths:
    return add_vm("web", image=None, disks=(Disk(size=MIB),))


def test_a_spec(web: VmPaths, order: Order) -> None:
    vms.replace("web", web.spec.read_text() + "# more\n")
    order.check(web.spec)
    rename.rename("web", "www")
    order.check(VmPaths.of("www").spec)


async def _clone(_: Path) -> Path:
    await clone("web", "new")
    return vms_dir() / "new"


async def _linked(_: Path) -> Path:
    await clone("web", "new", linked=True)
    return vms_dir() / "new"


async def _exported(folder: Path) -> Path:
    await export("web", folder / "file")
    return folder / "file"


async def _imported(folder: Path) -> Path:
    await export("web", folder / "file")
    await import_(folder / "file", name="new")
    return vms_dir() / "new"


async def _image(folder: Path) -> Path:
    await import_file(qcow2(folder / "disk.qcow2", PATTERN), name="new")
    return images_dir() / "new"


async def _snapshot(_: Path) -> Path:
    await offline.create_snapshot("web", "one")
    return VmPaths.of("web").snapshots


@pytest.mark.parametrize(
    "make", [_clone, _linked, _exported, _imported, _image, _snapshot]
)
async def test_what_is_made(
    web: VmPaths, tmp_path: Path, order: Order, make: Callable[[Path], Awaitable[Path]]
) -> None:
    order.check(await make(tmp_path))


async def test_a_removal_that_keeps_disks_knows_it_after_a_power_cut(
    web: VmPaths, order: Order
) -> None:
    (disk,) = web.disks.iterdir()
    folder = web.state.stat().st_ino
    kept = removal.remove("web", keep_disks=True)
    assert kept is not None
    moved = [what for kind, what in order.steps if kind == "name"]
    first = order.steps.index(("name", moved[0]))
    assert ("sync", folder) in order.steps[:first]  # the mark is in it
    assert ("sync", kept.parent.stat().st_ino) in order.steps
    assert (kept / disk.name).exists()
