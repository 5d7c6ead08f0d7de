"""Images made, resized, rebased, and what is left when that fails."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import ImageError, ImageInUse, UsageError
from qemuctl.image import qemu_img
from qemuctl.image.check import check
from qemuctl.image.extents import extents, usage
from qemuctl.image.files import commit, create, rebase, resize
from qemuctl.image.qcow2 import read_header
from qemuctl.image.snapshots import (
    snapshot_apply,
    snapshot_create,
    snapshot_delete,
    snapshots,
)
from tests.unit.disk_images import MIB, ODD, content, digest, overlay, qcow2, raw, write
from tests.unproven import in_small_mounts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ODD
    path.mkdir()
    return path


@pytest.fixture
def data() -> bytes:
    """A disk of 3 MiB: data, a hole, data."""
    return os.urandom(MIB) + bytes(MIB) + os.urandom(MIB)


@pytest.mark.parametrize(
    ("format", "how"),
    [("qcow2", None), ("qcow2", "metadata"), ("qcow2", "full"), ("raw", "falloc")],
)
async def test_an_image_is_created_with_its_room(
    folder: Path, format: str, how: str | None
) -> None:
    path = folder / "disk"
    await create(path, 4 * MIB, format, how)
    assert usage(path, format).virtual_size == 4 * MIB
    if how in ("full", "falloc"):
        assert path.stat().st_blocks * 512 >= 4 * MIB
    with pytest.raises(ImageError, match="there is a file already"):
        await create(path, MIB, format)
    with pytest.raises(UsageError, match="no such preallocation"):
        await create(folder / "x", MIB, format, "sparse")
    with pytest.raises(UsageError, match="unknown format"):
        await create(folder / "x", MIB, "vmdk")
    assert list(folder.iterdir()) == [path]


async def test_an_overlay_is_of_its_backing_files_size_and_names_its_format(
    folder: Path, data: bytes
) -> None:
    base, top = raw(folder / "base", data), folder / "top"
    await create(top, None, "qcow2", backing=base, backing_format="raw")
    header = read_header(top)
    assert (header.backing_file, header.backing_format) == (str(base), "raw")
    assert header.virtual_size == len(data)
    assert content(top) == digest(data)
    other = folder / "other"
    for kind, how, below in (
        ("raw", None, "raw"), ("qcow2", "metadata", "raw"), ("qcow2", None, None),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            await create(other, None, kind, how, backing=base, backing_format=below)
    with pytest.raises(UsageError, match="the size is missing"):
        await create(other, None, "qcow2")
    assert not other.exists()


@pytest.mark.parametrize("format", ["qcow2", "raw"])
async def test_no_overlay_is_made_on_what_somebody_writes_to(
    folder: Path, data: bytes, format: str, processes: list[subprocess.Popen[Any]]
) -> None:
    held = (qcow2 if format == "qcow2" else raw)(folder / "held", data)
    process = subprocess.Popen(
        ["qemu-io", "--image-opts", qemu_img.options(held, format)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.read(8) == b"qemu-io>"
    with pytest.raises(ImageInUse):
        await create(folder / "top", None, "qcow2", backing=held, backing_format=format)
    assert list(folder.iterdir()) == [held]


@pytest.mark.parametrize("format", ["qcow2", "raw"])
async def test_shrinking_needs_to_be_said(
    folder: Path, data: bytes, format: str
) -> None:
    path = (qcow2 if format == "qcow2" else raw)(folder / "disk", data)
    await resize(path, format, 8 * MIB)
    assert usage(path, format).virtual_size == 8 * MIB
    with pytest.raises(ImageError, match="2M instead of 8M") as caught:
        await resize(path, format, 2 * MIB)
    assert "--shrink" in (caught.value.hint or "")
    await resize(path, format, 2 * MIB, shrink=True)
    assert content(path, format) == digest(data[: 2 * MIB])


async def test_shrinking_with_snapshots_is_refused_by_qemu_img(folder: Path) -> None:
    path = folder / "disk"
    # Version 3 keeps the size of the disk with each snapshot.
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-o", "compat=0.10", qemu_img.file(path), "4M"
    )
    await snapshot_create(path, "one")
    with pytest.raises(ImageError, match=r"qemu-img resize failed: .*snapshots"):
        await resize(path, "qcow2", MIB, shrink=True)
    assert read_header(path).virtual_size == 4 * MIB


# check


async def test_a_sound_image_is_clean_and_a_raw_one_has_no_check(folder: Path) -> None:
    path = folder / "disk"
    await create(path, 4 * MIB, "qcow2")
    assert (await check(path, "qcow2")).clean
    with pytest.raises(UsageError, match="nothing that could be checked"):
        await check(raw(folder / "raw", bytes(512)), "raw")


async def test_leaks_and_corruptions_are_found_and_repaired(
    folder: Path, data: bytes
) -> None:
    base = raw(folder / "base.raw", data)
    path = overlay(folder / "disk", base, "raw")
    write(path, 0, 262144, 7)
    # The first block of reference counts is the third cluster: one too many, one
    # too few.
    sound = path.read_bytes()
    for changed, kind in ((2, "leaks"), (0, "corruptions")):
        image = bytearray(sound)
        last = len(image) // 65536 - 1
        image[131072 + 2 * last : 131072 + 2 * last + 2] = changed.to_bytes(2, "big")
        path.write_bytes(image)
        found = await check(path, "qcow2")
        assert not found.clean
        assert getattr(found, kind) >= 1
        mended = await check(path, "qcow2", repair=True)
        assert mended.clean
        assert getattr(mended, f"{kind}_fixed") >= 1
        assert (await check(path, "qcow2")).clean
    header = read_header(path)
    assert (header.backing_file, header.backing_format) == (str(base), "raw")
    assert content(path) == digest(b"\x07" * 262144 + data[262144:])


@pytest.mark.parametrize("offset", [0, 20, 36, 40, 48, 196608])
async def test_a_damaged_image_is_never_clean(
    folder: Path, data: bytes, offset: int
) -> None:
    path = qcow2(folder / "disk", data)
    image = bytearray(path.read_bytes())
    for index in range(offset, offset + 4):
        image[index] ^= 0xA5
    path.write_bytes(image)
    with contextlib.suppress(ImageError):
        assert not (await check(path, "qcow2")).clean


# rebase, commit


async def test_a_rebase_changes_nothing_for_the_guest(
    folder: Path, data: bytes
) -> None:
    base = raw(folder / "base.raw", data)
    other = qcow2(folder / "other.qcow2", os.urandom(3 * MIB))
    top = overlay(folder / "top", base, "raw")
    write(top, 0, 65536, 7)
    before = content(top)
    seen: list[int] = []
    await rebase(
        top, "qcow2", other, "qcow2", progress=lambda done, _total: seen.append(done)
    )
    assert content(top) == before
    assert read_header(top).backing_file == str(other)
    assert seen[-1] == 10_000
    await rebase(top, "qcow2", None, None)
    assert content(top) == before
    assert read_header(top).backing_file is None


async def test_a_backing_file_that_moved_is_named_anew(
    folder: Path, data: bytes
) -> None:
    base = raw(folder / "base.raw", data)
    top = overlay(folder / "top", base, "raw")
    moved = base.rename(folder / "moved: here.raw")
    with pytest.raises(ImageError, match="does not exist"):
        await rebase(top, "qcow2", moved, "raw")
    await rebase(top, "qcow2", moved, "raw", unsafe=True)
    assert content(top) == digest(data)


async def test_what_would_be_below_itself_is_refused(folder: Path, data: bytes) -> None:
    base = qcow2(folder / "base.qcow2", data)
    top = overlay(folder / "top.qcow2", base, "qcow2")
    for unsafe in (False, True):
        for backing in (base, top):
            with pytest.raises(ImageError, match="its own backing file"):
                await rebase(base, "qcow2", backing, "qcow2", unsafe=unsafe)
    with pytest.raises(UsageError, match="has no backing file"):
        await rebase(raw(folder / "raw", data), "raw", base, "qcow2")
    with pytest.raises(UsageError, match="the format of the backing file is missing"):
        await rebase(top, "qcow2", base, None)
    with pytest.raises(ImageError, match="said to be raw, but it has a qcow2 header"):
        await rebase(top, "qcow2", base, "raw")


async def test_a_commit_moves_the_data_down(folder: Path, data: bytes) -> None:
    base = raw(folder / "base.raw", data)
    top = overlay(folder / "top", base, "raw")
    write(top, 65536, 65536, 7)
    wanted = content(top)
    with pytest.raises(ImageError, match="an image that others share"):
        await commit(top, "qcow2", protected=[folder])
    assert base.read_bytes() == data
    await commit(top, "qcow2")
    assert digest(base.read_bytes()) == wanted == content(top)
    assert usage(top, "qcow2").allocated == (0, 3 * MIB)
    with pytest.raises(ImageError, match="has no backing file"):
        await commit(base, "raw")


async def test_a_link_does_not_hide_a_protected_backing_file(
    folder: Path, data: bytes
) -> None:
    store = folder / "store"
    store.mkdir()
    base = raw(store / "base.raw", data)
    (folder / "link.raw").symlink_to(base)
    top = overlay(folder / "top", folder / "link.raw", "raw")
    with pytest.raises(ImageError, match="an image that others share"):
        await commit(top, "qcow2", protected=[store])


# snapshots


async def test_a_snapshot_brings_the_disk_back(folder: Path, data: bytes) -> None:
    base = raw(folder / "base.raw", data)
    path = overlay(folder / "disk", base, "raw")
    before = content(path)
    await snapshot_create(path, "-d, o: ünï")
    write(path, 0, 65536, 7)
    assert content(path) != before
    (one,) = snapshots(path)
    assert (one.id, one.name, one.vm_state_size) == ("1", "-d, o: ünï", 0)
    assert one.created.tzinfo is not None
    await snapshot_apply(path, one.name)
    assert content(path) == before
    await snapshot_delete(path, one.name)
    assert snapshots(path) == []
    assert read_header(path).backing_file == str(base)


async def test_names_of_snapshots_are_one_thing_each(folder: Path) -> None:
    path = folder / "disk"
    await create(path, MIB, "qcow2")
    await snapshot_create(path, "one")
    with pytest.raises(ImageError, match="there is a snapshot of this name"):
        await snapshot_create(path, "one")
    for name in ("", " ", "1", "x" * 256):
        with pytest.raises(UsageError, match="not a name for a snapshot"):
            await snapshot_create(path, name)
    for work in (snapshot_apply(path, "two"), snapshot_delete(path, "1")):
        with pytest.raises(ImageError, match="no such snapshot") as caught:
            await work
        assert caught.value.hint == "there is: one"


# usage, map


async def test_usage_tells_the_layers_apart(folder: Path, data: bytes) -> None:
    base = raw(folder / "base.raw", b"")
    with base.open("wb") as file:
        file.write(data[:MIB])
        file.truncate(4 * MIB)
    top = overlay(folder / "top", base, "raw")
    write(top, 0, 262144, 7)
    found = usage(top, "qcow2")
    assert found.virtual_size == 4 * MIB
    assert found.allocated == (262144, MIB - 262144)
    assert found.used == top.stat().st_blocks * 512
    assert found.used_by_all == found.used + base.stat().st_blocks * 512
    parts = extents(top, "qcow2")
    assert [(part.depth, part.data) for part in parts] == [
        (0, True), (1, True), (1, False),
    ]  # fmt: skip
    assert sum(part.length for part in parts) == 4 * MIB


FULL = """
import asyncio, hashlib, json, os, subprocess, sys
from pathlib import Path
from qemuctl.errors import ImageError
from qemuctl.image.convert import convert
from qemuctl.image.files import commit, create, rebase
from qemuctl.image import qemu_img
from tests.unit import disk_images as t

small, big = Path(sys.argv[1]), Path(sys.argv[2])
MIB = 1 << 20
told = {}

def attempt(name, work):
    try:
        asyncio.run(work)
        told[name] = None
    except ImageError as error:
        told[name] = str(error)

data = os.urandom(12 * MIB)
source = t.raw(big / "source.raw", data)
old = t.raw(small / "old", b"old")
attempt("convert", convert(source, old, source_format="raw", format="qcow2",
                           replace=True))
told["convert kept"] = old.read_bytes() == b"old"
attempt("create", create(small / "disk", 12 * MIB, "raw", "full"))
told["left"] = sorted(p.name for p in small.iterdir())

top = t.overlay(small / "top", source, "raw")
t.write(top, 0, 65536, 7)
def seen(path):
    out = big / "seen"
    qemu_img.run("convert", "-f", "qcow2", "-O", "raw", qemu_img.file(path),
                   qemu_img.file(out))
    return t.digest(out.read_bytes())
before = seen(top)
attempt("rebase", rebase(top, "qcow2", None, None))
told["rebase same"] = seen(top) == before
top.unlink()

base = small / "base.qcow2"
asyncio.run(create(base, 12 * MIB, "qcow2"))
above = t.overlay(big / "above", base, "qcow2")
t.write(above, 0, 12 * MIB, 7)
before = seen(above)
attempt("commit", commit(above, "qcow2"))
told["commit same"] = seen(above) == before
print(json.dumps(told))
"""


def test_a_full_disk_loses_nothing_and_is_named(folder: Path) -> None:
    small, big = folder / "small", folder / "big"
    small.mkdir()
    big.mkdir()
    script = 'mount -t tmpfs -o size=8m none "$1" && exec "$2" -c "$4" "$1" "$3"'
    done = subprocess.run(
        [*in_small_mounts("a full disk"), "sh", "-ec", script, "sh", small,
         sys.executable, big, FULL],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "convert": f"no room left to write old: {small}",
        "convert kept": True,
        "create": f"no room left to write disk: {small}",
        "left": ["old"],
        "rebase": f"no room left to write top: {small}",
        "rebase same": True,
        "commit": f"no room left to write base.qcow2: {small}",
        "commit same": True,
    }
