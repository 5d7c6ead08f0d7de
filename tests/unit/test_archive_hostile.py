"""Archives that are damaged, or made to do harm: none becomes a VM."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.copies.archive import export, import_
from qemuctl.errors import ImageError, QemuctlError, SpecError
from qemuctl.image import qemu_img
from qemuctl.paths import vms_dir
from qemuctl.registry import removal
from qemuctl.spec import Disk
from tests.hostile import fuzzed, memory
from tests.unit.disk_images import MIB, overlay, qcow2, raw
from tests.unit.stores import PATTERN, add_vm, everything, in_a_loop

pytestmark = pytest.mark.usefixtures("bare_home")

SPEC = b"name: web\ndisks:\n- path: disks/disk0.qcow2\n"
DISK = "disks/disk0.qcow2"


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    """A small archive, as it should be; its VM is gone."""
    add_vm("web", disks=(Disk(size=MIB),))
    target = tmp_path / "good.tar"
    in_a_loop(export("web", target))
    removal.remove("web")
    return target.read_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    return qcow2(tmp_path / "disk", PATTERN).read_bytes()


async def refused(data: bytes, tmp_path: Path, *, trust: bool = False) -> QemuctlError:
    """The error for an archive, of which nothing is left."""
    path = tmp_path / "bad.tar"
    path.write_bytes(data)
    with pytest.raises(QemuctlError) as caught:
        await import_(path, trust=trust)
    assert everything(vms_dir()) == []
    assert str(path) in str(caught.value)
    return caught.value


def archive(
    contents: dict[str, bytes],
    listed: Callable[[list[dict[str, Any]]], object] = lambda _entries: None,
    member: Callable[[tarfile.TarInfo], object] = lambda _info: None,
    **about: Any,
) -> bytes:
    """An archive with these files; the list of them and each member changed."""
    entries: list[dict[str, Any]] = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    ]
    listed(entries)
    text = json.dumps({"format": 1, "name": "web", "files": entries} | about).encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in {"qemuctl.json": text, **contents}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name != "qemuctl.json":
                member(info)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


async def test_such_an_archive_is_accepted_when_nothing_is_wrong(
    tmp_path: Path, disk: bytes
) -> None:
    path = tmp_path / "fine.tar"
    path.write_bytes(archive({"vm.yaml": SPEC, DISK: disk}))
    assert await import_(path) == "web"


async def test_an_archive_that_was_cut_off_is_refused(
    good: bytes, tmp_path: Path
) -> None:
    for length in {0, 1, 511, 512, 600, len(good) // 2, len(good) - 10241}:
        await refused(good[:length], tmp_path)


@pytest.mark.parametrize("name", ["qemuctl.json", "vm.yaml", DISK])
async def test_a_flipped_byte_is_found(good: bytes, tmp_path: Path, name: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(good)) as tar:
        member = tar.getmember(name)
    data = bytearray(good)
    data[member.offset_data + member.size // 2] ^= 1
    words = str(await refused(bytes(data), tmp_path))
    if name != "qemuctl.json":
        assert f"the checksum of {name} is wrong" in words


@fuzzed(150)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 4095),
            st.sampled_from([0, 0x30, 0xFF, 0x78, 0x31]) | st.integers(0, 255),
        ),
        max_size=20,
    )
)
def test_whatever_bytes_are_wrong_there_is_a_clear_error_or_none(
    good: bytes, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path / "odd.tar"
    data = bytearray(good)
    for at, value in changes:
        data[at] = value
    path.write_bytes(data)
    with contextlib.suppress(QemuctlError):
        removal.remove(in_a_loop(import_(path, name="odd")))
    assert everything(vms_dir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no tar\n" * 1000, bytes(10240), b"\x1f\x8b" + bytes(600),
        archive({}), archive({DISK: b"x"}),
    ],
)  # fmt: skip
async def test_what_is_no_archive_of_a_vm_is_refused(
    data: bytes, tmp_path: Path
) -> None:
    assert isinstance(await refused(data, tmp_path), ImageError)


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        await import_(tmp_path / "nowhere.tar")
    with pytest.raises(ImageError, match="cannot read the archive"):
        await import_(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a file"):
        await import_(tmp_path / "pipe")


@pytest.mark.parametrize(
    "listed",
    [
        lambda entries: entries.pop(),
        lambda entries: entries.append({"name": "kernel", "size": 0, "sha256": ""}),
        lambda entries: entries[1].update(size=1 << 60),
        lambda entries: entries[1].update(size=0),
        lambda entries: entries[1].update(size="1"),
        lambda entries: entries[1].update(sha256=None),
        lambda entries: entries[1].update(name=7),
        lambda entries: entries[1].update(name=["disks"]),
        lambda entries: entries[1].update(more=1),
        lambda entries: entries.append("disks"),
        lambda entries: entries.append(None),
    ],
)
async def test_a_list_that_does_not_fit_is_refused(
    tmp_path: Path, disk: bytes, listed: Callable[[list[dict[str, Any]]], object]
) -> None:
    data = archive({"vm.yaml": SPEC, DISK: disk}, listed)
    assert "damaged" in str(await refused(data, tmp_path))


@pytest.mark.parametrize("files", ["[" * 100_000, None, {}, 7, [7]])
async def test_a_list_that_makes_no_sense_is_refused(
    tmp_path: Path, files: Any
) -> None:
    data = archive({"vm.yaml": SPEC}, files=files)
    if isinstance(files, str):  # not as text: as so many lists within lists
        data = data.replace(b'"' + files.encode() + b'"', files.encode() + b"  ")
    assert "damaged" in str(await refused(data, tmp_path))


async def test_an_archive_of_the_future_is_named_as_such(tmp_path: Path) -> None:
    error = await refused(archive({"vm.yaml": SPEC}, format=2), tmp_path)
    assert "later version" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "../vm.yaml", "/etc/passwd", "disks/../../x", "disks/", "disks", "process.json",
        "lock", "seed.iso", "disks/disk0.qcow2/x", "disks/disk0.base1.qcow2",
        "disks/disk٣.qcow2", "disks/Disk.qcow2", "known_hosts", "throwaway", "",
    ],
)  # fmt: skip
async def test_names_of_other_files_are_refused(
    tmp_path: Path, disk: bytes, name: str
) -> None:
    error = await refused(archive({"vm.yaml": SPEC, name: disk}), tmp_path)
    assert isinstance(error, ImageError)
    assert "damaged" in str(error)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE,
        tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["vm.yaml", DISK])
async def test_members_that_are_no_plain_files_are_refused(
    tmp_path: Path, disk: bytes, kind: bytes, name: str
) -> None:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == name:
            info.type, info.linkname = kind, "/etc/passwd"

    await refused(archive({"vm.yaml": SPEC, DISK: disk}, member=change), tmp_path)


async def test_a_few_bytes_do_not_become_a_disk_that_fills_the_host(
    tmp_path: Path,
) -> None:
    """GNU tar's sparse files, as the extended header of POSIX has them."""
    size = 1 << 40

    def listed(entries: list[dict[str, Any]]) -> None:
        entries[1].update(size=size)

    def sparse(info: tarfile.TarInfo) -> None:
        if info.name == DISK:
            info.pax_headers = {
                "GNU.sparse.major": "0", "GNU.sparse.minor": "1",
                "GNU.sparse.map": "0,1", "GNU.sparse.numblocks": "1",
                "GNU.sparse.size": str(size), "GNU.sparse.name": DISK,
            }  # fmt: skip

    data = archive({"vm.yaml": SPEC, DISK: b"Q"}, listed, sparse)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmember(DISK).issparse()
    assert "is not what the list says" in str(await refused(data, tmp_path))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
async def test_a_head_of_gigabytes_is_not_read_into_memory(
    tmp_path: Path, disk: bytes, kind: bytes, first: bool
) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 64 * MIB
    bomb = info.tobuf(tarfile.GNU_FORMAT) + bytes(info.size)
    good = archive({"vm.yaml": SPEC, DISK: disk})
    with memory(2 * len(bomb)):
        error = await refused(bomb + good if first else good[:1024] + bomb, tmp_path)
    assert "makes no sense" in str(error)


async def test_a_member_that_comes_twice_is_refused(
    tmp_path: Path, disk: bytes
) -> None:
    data = archive({"vm.yaml": SPEC, DISK: disk})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        info = tar.getmember(DISK)
    end = info.offset_data + -(-info.size // 512) * 512
    twice = data[:end] + data[info.offset : end] + bytes(10240)
    await refused(twice, tmp_path)


@pytest.mark.parametrize("trust", [False, True])
async def test_a_disk_that_names_another_file_is_refused_with_or_without_trust(
    tmp_path: Path, trust: bool
) -> None:
    secret = raw(tmp_path / "secret.raw", PATTERN)
    top = overlay(tmp_path / "top.qcow2", secret, "raw")
    meta = tmp_path / "meta.qcow2"
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data",
        qemu_img.file(meta), "1M",
    )  # fmt: skip
    for bad in (top.read_bytes(), meta.read_bytes(), b"no disk", b""):
        await refused(archive({"vm.yaml": SPEC, DISK: bad}), tmp_path, trust=trust)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("extra_args: [-usbdevice, disk:/etc/shadow]", "extra_args"),
        ("qemu: ./qemu", "qemu"),
        ("cdrom: /etc/shadow", "cdrom"),
        ("image: /root/disk.raw", "image"),
        ("image: debian-13", "image"),
        ("trust_backing: true", "trust_backing"),
        ("sandbox: false", "sandbox"),
        ("nics: [{type: tap, ifname: tap0}]", "nics"),
        ("nics: [{type: socket, connect: /run/x}]", "nics"),
        ("display: {type: vnc, address: '0.0.0.0:5900'}", "display.address"),
        ("boot: {kernel: /boot/vmlinuz}", "boot"),
        ("boot: {kernel: kernel, initrd: ../../../secret}", "boot"),
        ("boot: {kernel: vm.yaml}", "boot"),
        ("disks: [{path: /etc/shadow, format: raw}]", "disks"),
        ("disks: [{path: ../db/disks/disk0.qcow2}]", "disks"),
        ("disks: [{path: disks/../vm.yaml, format: raw}]", "disks"),
        # A guest that can write to its own spec gives QEMU any argument.
        ("disks: [{path: vm.yaml, format: raw}]", "disks"),
        ("disks: [{path: process.json, format: raw}]", "disks"),
        ("disks: [{path: kernel, format: raw}]", "disks"),
        ("cloud_init: {user_data: /etc/shadow}", "cloud_init"),
        ("cloud_init: {ssh_keys: [/root/.ssh/id_ed25519]}", "cloud_init"),
    ],
)
async def test_a_spec_that_leads_outside_is_refused(
    tmp_path: Path, text: str, key: str
) -> None:
    files = {"vm.yaml": f"name: web\n{text}\n".encode(), "kernel": b"k"}
    error = await refused(archive(files), tmp_path)
    assert isinstance(error, SpecError)
    assert error.key == key
    assert "--trust" in (error.hint or "")


@pytest.mark.parametrize(
    "text", ["name: ../x", "name: web\nextra: 1", "- x", "", "\xff", "x: " + "[" * 50]
)
async def test_a_spec_that_is_none_is_refused_with_its_line(
    tmp_path: Path, text: str
) -> None:
    error = await refused(archive({"vm.yaml": text.encode("latin-1")}), tmp_path)
    assert isinstance(error, SpecError)


EXPORTING = """
import asyncio, sys
from pathlib import Path
from qemuctl.copies import archive

async def stop(*args):
    await kept(*args)
    print("made", flush=True)
    sys.stdin.read()

kept, archive._flatten = archive._flatten, stop
asyncio.run(archive.export("web", Path(sys.argv[1])))
"""


def test_what_a_killed_export_left_is_gone_with_the_next_one(
    tmp_path: Path, processes: list[subprocess.Popen[Any]]
) -> None:
    add_vm("web", disks=(Disk(size=MIB),))
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORTING, folder / "a.tar"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.kill()
    process.wait()
    assert {path.name[0] for path in folder.iterdir()} == {"."}
    in_a_loop(export("web", folder / "b.tar"))
    assert list(folder.iterdir()) == [folder / "b.tar"]
