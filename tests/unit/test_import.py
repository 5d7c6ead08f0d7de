"""Image files imported into the store, and verified there; work in threads."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import threading
from pathlib import Path

import pytest

from qemuctl.errors import ImageError, SpecError, UsageError
from qemuctl.image import qemu_img, store
from qemuctl.image.acquire import import_file
from qemuctl.image.manifest import FILE
from qemuctl.image.verify import verify
from qemuctl.paths import images_dir
from qemuctl.registry.origin import origin_of
from qemuctl.thread import Tick, in_thread
from tests.unit.disk_images import MIB, ODD, content, digest, overlay, qcow2, raw
from tests.unit.stores import PATTERN, add_image, add_vm, everything, with_data_file

pytestmark = pytest.mark.usefixtures("bare_home")

DATA = PATTERN.ljust(MIB, b"\0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ODD
    path.mkdir()
    return path


@pytest.fixture
def disk(folder: Path) -> Path:
    """A qcow2 image of 1 MiB."""
    return qcow2(folder / "disk.qcow2", DATA)


def nothing_came() -> bool:
    return store.names() == [] and everything(images_dir()) == []


@pytest.mark.parametrize("suffix", ["qcow2", "vmdk", "vdi", "vhdx", "vhd", "QCOW2"])
async def test_every_format_is_imported_by_its_suffix(
    folder: Path, suffix: str
) -> None:
    path = folder / f"in, a:b ü.{suffix}"
    kind = {"vhd": "vpc"}.get(suffix, suffix.lower())
    more = ["-o", "force_size=on"] if kind == "vpc" else []
    source = raw(folder / "raw", DATA)
    qemu_img.run(
        "convert", "-f", "raw", "-O", kind, *more, qemu_img.file(source),
        qemu_img.file(path),
    )  # fmt: skip
    before = path.read_bytes()
    image = await import_file(path, name="x", user="me")
    disk = image.disk or Path()
    assert (disk.name, image.manifest.source) == ("disk.qcow2", str(path))
    assert content(disk_copy(disk, folder)) == digest(DATA)
    assert (image.manifest.user, image.manifest.cloud_init) == ("me", True)
    assert image.manifest.sha256 == digest(disk.read_bytes())
    assert path.read_bytes() == before
    await verify(image)


def disk_copy(disk: Path, folder: Path) -> Path:
    return Path(shutil.copy(disk, folder / "copy"))


async def test_a_raw_image_stays_sparse(folder: Path) -> None:
    path, size = raw(folder / "a.raw", DATA), 64 * MIB
    with path.open("r+b") as file:
        file.truncate(size)
    image = await import_file(path)
    status = (image.disk or Path()).stat()
    assert (status.st_size, image.manifest.virtual_size) == (size, size)
    assert status.st_blocks * 512 < MIB


async def test_an_overlay_is_refused_and_with_trust_flattened(disk: Path) -> None:
    top = overlay(disk.with_name("top.qcow2"), disk, "qcow2")
    with pytest.raises(ImageError) as caught:
        await import_file(top)
    assert "--trust-backing" in (caught.value.hint or "")
    assert nothing_came()
    image = await import_file(top, trust_backing=True)
    shutil.rmtree(disk.parent)
    assert content(disk_copy(image.disk or Path(), disk.parents[1])) == digest(DATA)


async def test_an_image_in_two_files_is_refused_and_with_trust_made_one(
    folder: Path,
) -> None:
    path = with_data_file(folder / "meta.qcow2")
    with pytest.raises(ImageError, match="is in another file"):
        await import_file(path)
    assert nothing_came()
    image = await import_file(path, trust_backing=True)
    (folder / "data.raw").unlink()
    assert content(disk_copy(image.disk or Path(), folder)) == digest(DATA)


async def test_a_corrupted_image_is_refused(disk: Path) -> None:
    broken = bytearray(disk.read_bytes())
    # The first entry of the L1 table: a cluster beyond the end of the file.
    table = int.from_bytes(broken[40:48], "big")
    broken[table : table + 8] = (1 << 63 | 1 << 40).to_bytes(8, "big")
    disk.write_bytes(broken)
    with pytest.raises(ImageError, match="is damaged") as caught:
        await import_file(disk)
    assert "qemuctl image check" in (caught.value.hint or "")
    assert nothing_came()


async def test_what_cannot_be_imported_is_refused_with_a_reason(disk: Path) -> None:
    unknown = Path(shutil.copy(disk, disk.with_name("disk.img")))
    with pytest.raises(UsageError, match="format is not known") as caught:
        await import_file(unknown)
    assert "--format" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="unknown format: iso"):
        await import_file(unknown, format="iso")
    with pytest.raises(ImageError, match="qcow2 header"):
        await import_file(unknown, format="raw")
    with pytest.raises(ImageError, match="does not exist"):
        await import_file(disk.with_name("nowhere.qcow2"))
    with pytest.raises(ImageError, match=r"cannot read|not a file"):
        await import_file(disk.parent, name="x", format="raw")
    pipe = disk.with_name("pipe.raw")
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="not a file"):
        await import_file(pipe)
    assert nothing_came()
    assert (await import_file(unknown, format="qcow2")).name == "disk"
    with pytest.raises(ImageError, match="exists already: disk"):
        await import_file(unknown, format="qcow2")


async def test_what_is_packed_or_of_another_format_is_never_imported_as_raw(
    disk: Path,
) -> None:
    packed = disk.with_name("d.raw.xz")
    packed.write_bytes(b"\xfd7zXZ\0".ljust(512, b"x"))
    for said in (None, "raw", "qcow2"):
        with pytest.raises(ImageError, match="packed by xz") as caught:
            await import_file(packed, name="x", format=said)
        assert f"xz -dk {shlex.quote(str(packed))}" in (caught.value.hint or "")
    vdi = disk.with_name("disk.img")
    qemu_img.run("convert", "-O", "vdi", qemu_img.file(disk), qemu_img.file(vdi))
    with pytest.raises(ImageError, match="a VDI image") as caught:
        await import_file(vdi, format="raw")
    assert "--format vdi" in (caught.value.hint or "")
    with pytest.raises(UsageError) as usage:
        await import_file(vdi)
    assert "--format vdi" in (usage.value.hint or "")
    assert nothing_came()


async def test_a_file_whose_name_is_no_text_is_imported(disk: Path) -> None:
    odd = raw(Path(os.fsdecode(os.fsencode(disk.parent) + b"/\xff.raw")), DATA)
    image = await import_file(odd, name="x")
    assert (image.manifest.source or "").endswith("/?.raw")


async def test_a_cancelled_import_leaves_nothing(folder: Path) -> None:
    path = qcow2(folder / "large.qcow2", os.urandom(8 * MIB))
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progress(_done: int, _total: int | None) -> None:
        loop.call_soon_threadsafe(begun.set)

    task = asyncio.create_task(import_file(path, progress=progress))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert nothing_came()


async def test_work_in_a_thread_has_ended_before_its_caller_is_cancelled() -> None:
    begun, cancelled_again = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    order: list[str] = []

    def cancel(times: int) -> None:
        task.cancel()
        if times:
            loop.call_soon(cancel, times - 1)
        else:
            cancelled_again.set()

    def work(tick: Tick) -> None:
        loop.call_soon_threadsafe(begun.set)
        try:
            while True:
                tick()
        finally:  # an impatient user
            loop.call_soon_threadsafe(cancel, 20)
            cancelled_again.wait()
            order.append("caller" if task.done() else "work")

    task = asyncio.create_task(in_thread(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order == ["work"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
async def test_an_image_that_has_changed_is_found(disk: Path, damage: str) -> None:
    image = await import_file(disk)
    await verify(image)
    file = image.disk or Path()
    file.chmod(0o600)
    if damage == "gone":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data if damage == "flipped" else data[:-1])
    words = "does not exist" if damage == "gone" else "has changed"
    with pytest.raises(ImageError, match=words):
        await verify(image)


async def test_an_image_without_a_checksum_cannot_be_verified() -> None:
    image = add_image("web")
    assert "sha256" not in (image.folder / FILE).read_text()
    with pytest.raises(SpecError, match="no checksum of the image web"):
        await verify(image)


async def test_the_root_disk_of_a_vm_brings_the_kernel_of_its_image(
    folder: Path,
) -> None:
    known = {"user": "me", "cloud_init": True, "cmdline": "root=/dev/vda"}
    base = add_image("base", DATA, kernel="linux", **known)
    vm = add_vm("web", image="base", disks=({"size": "1M"},))
    root, other = vm.disk(0, "qcow2"), vm.disk(1, "qcow2")
    assert origin_of(root) == base
    assert origin_of(other) is origin_of(folder / "x.qcow2") is None
    image = await import_file(root, name="copy", like=origin_of(root))
    assert image.kernel is not None
    assert image.initrd is not None
    assert (image.kernel.read_text(), image.initrd.read_text()) == (
        "linux", "linux's initrd",
    )  # fmt: skip
    assert image.manifest.model_dump().items() >= known.items()
    await verify(image)
