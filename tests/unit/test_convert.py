"""Images in other formats, and what is left when that fails."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from qemuctl.errors import ImageError, ImageInUse, UsageError
from qemuctl.image import limits, qemu_img
from qemuctl.image.check import check
from qemuctl.image.complete import check_complete
from qemuctl.image.convert import FORMATS, convert
from qemuctl.image.extents import extents
from qemuctl.image.files import commit, rebase, resize
from qemuctl.image.locks import check_unused
from qemuctl.image.qcow2 import read_header
from qemuctl.image.snapshots import (
    snapshot_create,
    snapshots,
)
from qemuctl.image.whole import whole
from tests.unit.disk_images import MIB, ODD, content, digest, overlay, qcow2, raw, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ODD
    path.mkdir()
    return path


@pytest.fixture
def data() -> bytes:
    """A disk of 3 MiB: data, a hole, data."""
    return os.urandom(MIB) + bytes(MIB) + os.urandom(MIB)


@pytest.mark.parametrize("format", FORMATS)
async def test_every_format_there_and_back(
    folder: Path, data: bytes, format: str
) -> None:
    source = raw(folder / "source", data)
    target = folder / f"target.{format}"
    await convert(source, target, source_format="raw", format=format)
    back = folder / "back"
    await convert(target, back, source_format=format, format="raw")
    # Some formats count in cylinders.
    assert back.read_bytes()[: len(data)] == data
    assert not any(back.read_bytes()[len(data) :])
    assert sorted(folder.iterdir()) == sorted([source, target, back])


async def test_a_chain_becomes_one_file(folder: Path, data: bytes) -> None:
    base = raw(folder / "base.raw", data)
    top = overlay(folder / "top", overlay(folder / "middle", base, "raw"), "qcow2")
    write(top, 0, 4096, 7)
    flat = folder / "flat.qcow2"
    await convert(top, flat, source_format="qcow2", format="qcow2")
    assert read_header(flat).backing_file is None
    assert content(flat) == content(top) == digest(b"\x07" * 4096 + data[4096:])


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
async def test_compression_makes_it_smaller(folder: Path, format: str) -> None:
    source = raw(folder / "source", b"abcdefgh" * (MIB // 8) * 4)
    target = folder / "target"
    await convert(source, target, source_format="raw", format=format, compress=True)
    assert target.stat().st_size < MIB
    assert content(target, format) == digest(source.read_bytes())


async def test_what_cannot_be_is_refused_before_any_work(folder: Path) -> None:
    source = raw(folder / "source", bytes(512))
    for options in ({"format": "vdi", "compress": True}, {"format": "img"}):
        with pytest.raises(UsageError):
            await convert(source, folder / "x", source_format="raw", **options)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"not a qcow2|ends before"):
        await convert(source, folder / "x", source_format="qcow2", format="raw")
    assert list(folder.iterdir()) == [source]


async def test_holes_stay_holes(folder: Path) -> None:
    source = folder / "source.raw"
    with source.open("wb") as file:
        file.write(os.urandom(65536))
        file.truncate(1 << 30)
    middle, back = folder / "x.qcow2", folder / "back.raw"
    await convert(source, middle, source_format="raw", format="qcow2")
    await convert(middle, back, source_format="qcow2", format="raw")
    assert middle.stat().st_blocks * 512 < MIB
    assert back.stat().st_size == 1 << 30
    assert back.stat().st_blocks * 512 < MIB


async def test_a_target_is_replaced_only_on_demand_and_never_a_source(
    folder: Path, data: bytes
) -> None:
    base = raw(folder / "base.raw", data)
    top = overlay(folder / "top.qcow2", base, "raw")
    with pytest.raises(ImageError, match="there is a file already"):
        await convert(base, top, source_format="raw", format="qcow2")
    for target in (base, top):
        with pytest.raises(ImageError, match="one of the files that are read"):
            await convert(
                top, target, source_format="qcow2", format="raw", replace=True
            )
    old = raw(folder / "old", b"old")
    await convert(top, old, source_format="qcow2", format="raw", replace=True)
    assert old.read_bytes() == data


async def test_an_image_in_use_is_neither_read_nor_replaced(
    folder: Path, data: bytes, processes: list[subprocess.Popen[Any]]
) -> None:
    held, other = qcow2(folder / "held", data), qcow2(folder / "other", data)
    process = subprocess.Popen(
        ["qemu-io", "--image-opts", qemu_img.options(held, "qcow2")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.read(8) == b"qemu-io>"
    for source, target in ((held, folder / "new"), (other, held)):
        with pytest.raises(ImageInUse) as caught:
            await convert(
                source, target, source_format="qcow2", format="raw", replace=True
            )
        assert caught.value.path == held
    with pytest.raises(ImageInUse):
        await resize(held, "qcow2", 8 * MIB)
    with pytest.raises(ImageInUse):
        await snapshot_create(held, "x")
    assert extents(held, "qcow2")
    assert snapshots(held) == []
    assert sorted(folder.iterdir()) == [held, other]


@pytest.mark.parametrize("format", ["qcow2", "raw"])
@pytest.mark.parametrize("switch", [[], ["-r"]])
async def test_nobody_opens_a_file_that_is_being_replaced(
    folder: Path, data: bytes, format: str, switch: list[str]
) -> None:
    source = raw(folder / "source", data)
    old = (qcow2 if format == "qcow2" else raw)(folder / "old", data)
    told: list[str] = []

    def look(_done: int, _total: int | None) -> None:
        done = subprocess.run(
            ["qemu-io", *switch, "--image-opts", qemu_img.options(old, format),
             "-c", "read 0 512"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        told.append(done.stderr)
        with pytest.raises(ImageInUse):
            check_unused(old)

    await convert(
        source, old, source_format="raw", format="raw", replace=True, progress=look
    )
    assert told
    assert all("Is another process using the image" in words for words in told)
    assert old.read_bytes() == data
    check_unused(old)


async def test_of_two_that_replace_a_file_one_gives_up(folder: Path) -> None:
    source = raw(folder / "source", os.urandom(MIB) * 8)
    target = raw(folder / "target", b"old")
    works = [
        convert(source, target, source_format="raw", format="raw", replace=True)
        for _ in range(2)
    ]
    one, other = await asyncio.gather(*works, return_exceptions=True)
    assert one is None
    assert isinstance(other, ImageInUse)
    assert target.read_bytes() == source.read_bytes()


async def test_a_file_that_appears_meanwhile_is_not_replaced(
    folder: Path, data: bytes
) -> None:
    source, target = raw(folder / "source", data), folder / "target"
    with pytest.raises(ImageError, match="there is a file already"):
        await convert(
            source, target, source_format="raw", format="raw", replace=True,
            progress=lambda _done, _total: raw(target, b"theirs"),
        )  # fmt: skip
    assert target.read_bytes() == b"theirs"


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.2])
@pytest.mark.parametrize(
    "option", ["cluster_size=4K", "compat=0.10", "refcount_bits=1"]
)
async def test_an_image_that_is_cut_short_is_refused(
    folder: Path, option: str, kept: float
) -> None:
    source, path = raw(folder / "source", os.urandom(16 * MIB)), folder / "disk.qcow2"
    qemu_img.run(
        "convert", "-f", "raw", "-O", "qcow2", "-o", option, qemu_img.file(source),
        qemu_img.file(path),
    )  # fmt: skip
    await check_complete(path)
    top = overlay(folder / "top.qcow2", path, "qcow2")
    os.truncate(path, int(path.stat().st_size * kept))
    for image in (path, top):
        with pytest.raises(ImageError, match="is cut short") as caught:
            await convert(image, folder / "x", source_format="qcow2", format="raw")
        assert str(path) in str(caught.value)
    assert not (folder / "x").exists()


async def test_an_image_that_only_wastes_room_behind_its_end_is_complete(
    folder: Path, data: bytes
) -> None:
    path = qcow2(folder / "disk.qcow2", data)
    image = bytearray(path.read_bytes())
    # A cluster that a crash let nobody write to: counted, and in no table.
    image[131072 + 2 * (len(image) // 65536) + 1] = 1
    path.write_bytes(image)
    await check_complete(path)
    await convert(path, folder / "x", source_format="qcow2", format="raw")
    assert (folder / "x").read_bytes() == data


async def test_tables_that_lead_out_of_the_file_are_refused(
    folder: Path, data: bytes
) -> None:
    path = qcow2(folder / "disk.qcow2", data)
    sound = path.read_bytes()
    tables = [int.from_bytes(sound[at : at + 8], "big") for at in (40, 48)]
    for table in tables:
        image = bytearray(sound)
        image[table + 3] = 0x40
        path.write_bytes(image)
        with pytest.raises(ImageError, match="is cut short"):
            await check_complete(path)
    path.write_bytes(sound[:79] + b"\x02" + sound[80:])  # QCOW2_INCOMPAT_CORRUPT
    with pytest.raises(ImageError, match="marked as corrupt") as caught:
        await check_complete(path)
    assert "--repair" in (caught.value.hint or "")


async def test_a_foreign_image_may_take_only_so_much(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder / "source.vmdk"
    await convert(
        raw(folder / "raw", os.urandom(MIB)), source, source_format="raw",
        format="vmdk",
    )  # fmt: skip
    monkeypatch.setattr(limits, "_MEMORY", 40 * MIB)
    with pytest.raises(ImageError, match="more than 40 MiB of memory"):
        await convert(source, folder / "x", source_format="vmdk", format="raw")
    assert limits.reading(1 << 40).cpu_seconds > 1 << 20


@pytest.mark.parametrize("switch", [[], ["-r"]])
async def test_a_raw_image_in_use_is_not_replaced_nor_read_while_it_is_written(
    folder: Path,
    data: bytes,
    processes: list[subprocess.Popen[Any]],
    switch: list[str],
) -> None:
    held, other = raw(folder / "held", data), raw(folder / "other", data)
    top = overlay(folder / "top", held, "raw")
    process = subprocess.Popen(
        ["qemu-io", *switch, "--image-opts", qemu_img.options(held, "raw")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.read(8) == b"qemu-io>"
    with pytest.raises(ImageInUse):
        await convert(other, held, source_format="raw", format="raw", replace=True)
    assert held.read_bytes() == data
    for source, kind in ((held, "raw"), (top, "qcow2")):
        work = convert(source, folder / f"of-{kind}", source_format=kind, format="raw")
        if switch:
            await work
            continue
        with pytest.raises(ImageInUse) as caught:
            await work
        assert caught.value.path == held


async def test_a_hostile_vmdk_reaches_no_other_file(folder: Path) -> None:
    secret = raw(folder / "secret", b"secret".ljust(512, b"."))
    text = (
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 1 FLAT "{secret}" 0\n'
    )
    listing = raw(folder / "listing.vmdk", text.encode())
    good = folder / "good.vmdk"
    qemu_img.run("create", "-q", "-f", "vmdk", qemu_img.file(good), "1M")
    within = raw(
        folder / "within.vmdk",
        good.read_bytes()[:12] + bytes(8) + good.read_bytes()[20:],
    )
    child = raw(
        folder / "child.vmdk",
        good.read_bytes().replace(b"# The Disk", b'parentFileNameHint="secret"\n', 1),
    )
    for path in (listing, within, child):
        with pytest.raises(ImageError, match="not a VMDK image of one file"):
            await convert(path, folder / "x", source_format="vmdk", format="raw")
    assert not (folder / "x").exists()


async def test_a_hostile_backing_name_is_refused_before_qemu_opens_it(
    folder: Path,
) -> None:
    path = folder / "evil.qcow2"
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-u", "-b", "nbd:127.0.0.1:1", "-F", "raw",
        qemu_img.file(path), "1M",
    )  # fmt: skip
    works = [
        convert(path, folder / "x", source_format="qcow2", format="raw"),
        resize(path, "qcow2", 2 * MIB),
        rebase(path, "qcow2", None, None),
        commit(path, "qcow2"),
        snapshot_create(path, "x"),
    ]
    for work in works:
        with pytest.raises(ImageError, match="not a plain file: nbd"):
            await work
    # A check opens no backing file, whatever it is.
    assert (await check(path, "qcow2")).clean
    await rebase(path, "qcow2", None, None, unsafe=True)
    assert read_header(path).backing_file is None


async def test_a_conversion_that_is_cancelled_leaves_what_was_there(
    folder: Path,
) -> None:
    source = raw(folder / "source", os.urandom(MIB) * 64)
    target = raw(folder / "target", b"old")
    begun = asyncio.Event()
    task = asyncio.create_task(
        convert(
            source, target, source_format="raw", format="qcow2", compress=True,
            replace=True, progress=lambda done, _total: done and begun.set(),
        )
    )  # fmt: skip
    async with asyncio.timeout(60):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert target.read_bytes() == b"old"
    assert sorted(folder.iterdir()) == [source, target]


def test_a_killed_conversion_leaves_what_was_there(
    folder: Path, until: Any, processes: list[subprocess.Popen[Any]]
) -> None:
    source = raw(folder / "source", os.urandom(MIB) * 64)
    target = raw(folder / "target", b"old")
    code = """
import asyncio, sys
from pathlib import Path
from qemuctl.image.convert import convert
asyncio.run(convert(Path(sys.argv[1]), Path(sys.argv[2]), source_format="raw",
    format="qcow2", compress=True, replace=True))
"""
    process = subprocess.Popen([sys.executable, "-c", code, source, target])
    processes.append(process)
    until(lambda: [p for p in folder.glob(".qemuctl-*") if p.stat().st_size > MIB])
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    until(lambda: not child.is_running())
    assert target.read_bytes() == b"old"
    assert len(list(folder.iterdir())) == 4
    with whole(target, replace=True) as fresh:
        fresh.write_bytes(b"new")
    assert sorted(folder.iterdir()) == [source, target]
