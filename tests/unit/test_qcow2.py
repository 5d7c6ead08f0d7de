"""Our own reader of qcow2 headers: real files, damaged ones, and any bytes."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import ImageError
from qemuctl.image import qemu_img
from qemuctl.image.qcow2 import Header, is_qcow2, read_header
from tests.hostile import fuzzed

Damage = Callable[[bytearray], None]


def make(path: Path, size: int | str, *more: str) -> Path:
    qemu_img.run("create", "-q", "-f", "qcow2", *more, qemu_img.file(path), str(size))
    return path


def put(kind: str, offset: int, value: int) -> Damage:
    def change(raw: bytearray) -> None:
        struct.pack_into(">" + kind, raw, offset, value)

    return change


@pytest.mark.parametrize("size", [0, 512, 1 << 20, 1 << 30, 100 << 30, 10 << 40])
@pytest.mark.parametrize(
    "option", ["cluster_size=64K", "cluster_size=2M", "compat=0.10", "extended_l2=on"]
)
def test_it_reads_what_qemu_img_wrote(tmp_path: Path, size: int, option: str) -> None:
    path = make(tmp_path / "disk", size, "-o", option)
    header = read_header(path)
    told = qemu_img.info(path, "qcow2")
    assert header.virtual_size == told["virtual-size"] == size
    assert header.cluster_size == told["cluster-size"]
    assert header.version == (2 if "compat" in option else 3)
    assert header == Header(
        version=header.version, virtual_size=size, cluster_size=header.cluster_size,
        backing_file=None, backing_format=None, data_file=None, encrypted=False,
        dirty=False, corrupt=False, snapshots=0, untouched=True,
    )  # fmt: skip


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_it_reads_the_name_and_format_of_a_backing_file(
    tmp_path: Path, version: str
) -> None:
    base = make(tmp_path / "bäse, with: it.qcow2", "1M")
    path = tmp_path / "overlay"
    make(path, "1M", "-b", f"file:{base}", "-F", "qcow2", "-o", f"compat={version}")
    header = read_header(path)
    assert header.backing_file == f"file:{base}"
    assert header.backing_format == "qcow2"
    assert header.untouched


def test_a_name_of_1023_bytes_is_the_longest(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    name = "./" + "x" * 1021
    make(path, "1M", "-u", "-b", name, "-F", "raw")
    assert read_header(path).backing_file == name
    damaged(path, put("I", 16, 1024))
    with pytest.raises(ImageError, match="1024 bytes"):
        read_header(path)


def test_an_image_that_was_written_to_is_not_untouched(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(1 << 20))
    path = tmp_path / "disk"
    qemu_img.run("convert", "-f", "raw", "-O", "qcow2", raw, path)
    assert not read_header(path).untouched


def test_snapshots_are_counted_and_tell_that_there_may_be_data(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", "1M")
    for name in "ab":
        qemu_img.run("snapshot", "-c", name, path)
    header = read_header(path)
    assert header.snapshots == 2
    assert not header.untouched


def test_an_external_data_file_is_told(tmp_path: Path) -> None:
    data = tmp_path / "däta"
    path = make(tmp_path / "disk", "1M", "-o", f"data_file={data}")
    assert read_header(path).data_file == str(data)


@pytest.mark.parametrize("method", [1, 2])
def test_encryption_is_told(tmp_path: Path, method: int) -> None:
    path = damaged(make(tmp_path / "disk", "1M"), put("I", 32, method))
    assert read_header(path).encrypted


@pytest.mark.parametrize(("bit", "flag"), [(0, "dirty"), (1, "corrupt")])
def test_dirty_and_corrupt_images_are_told(tmp_path: Path, bit: int, flag: str) -> None:
    path = damaged(make(tmp_path / "disk", "1M"), put("Q", 72, 1 << bit))
    assert getattr(read_header(path), flag)


def damaged(path: Path, *damages: Damage) -> Path:
    raw = bytearray(path.read_bytes())
    for damage in damages:
        damage(raw)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (put("I", 0, 0), "not a qcow2 image"),
        (put("I", 4, 1), "version 1"),
        (put("I", 4, 4), "version 4"),
        (put("I", 20, 8), "clusters of 2^8"),
        (put("I", 20, 0xFFFFFFFF), "clusters of"),
        (put("Q", 24, 1 << 62), "an L1 table of 1 entries"),
        (put("Q", 24, 1 << 63), "an L1 table of 1 entries"),
        (put("I", 36, 0), "an L1 table of 0 entries"),
        (put("I", 36, 0xFFFFFFFF), "an L1 table of 4294967295 entries"),
        (put("Q", 40, 7), "its L1 table at 7"),
        (put("Q", 40, 1 << 62), "ends before its L1 table"),
        (put("Q", 40, 0xFFFFFFFFFFFF0000), "L1 table at"),
        (put("Q", 48, 1), "refcount table at 1"),
        (put("I", 56, 0xFFFF), "a refcount table of 65535 clusters"),
        (put("I", 60, 65537), "65537 snapshots"),
        (put("Q", 64, 3), "snapshot table at 3"),
        (put("Q", 72, 1 << 40), "unknown features"),
        (put("I", 96, 7), "reference counts"),
        (put("I", 100, 96), "a header of 96 bytes"),
        (put("I", 100, 1 << 30), "a header of"),
        (put("I", 116, 1 << 20), "a header extension"),
        (put("Q", 8, 1 << 40), "the name of its backing file at"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, damage: Damage, words: str
) -> None:
    path = damaged(make(tmp_path / "disk", "1M"), damage)
    with pytest.raises(ImageError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "found", ["harm\0ess", "h\x1b[2Jess", "ha\r\nless", "har\u202eess"]
)
def test_a_name_that_would_be_seen_otherwise_is_refused(
    tmp_path: Path, found: str
) -> None:
    path = make(tmp_path / "overlay", "1M", "-u", "-b", "harmless", "-F", "raw")
    raw = path.read_bytes().replace(b"harmless", found.encode().ljust(8, b"x"))
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="control characters"):
        read_header(path)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "overlay", "1M", "-u", "-b", "harmless", "-F", "raw")
    path.write_bytes(path.read_bytes().replace(b"harmless", b"harm\xffess"))
    with pytest.raises(ImageError, match="not UTF-8"):
        read_header(path)


@pytest.mark.parametrize("length", [0, 3, 4, 71, 72, 103, 65536, 196600])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = make(tmp_path / "disk", "1M")
    os.truncate(path, length)
    assert is_qcow2(path) == (length >= 4)
    with pytest.raises(ImageError, match="the qcow2 image ends before"):
        read_header(path)


def test_only_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError):
            is_qcow2(path)


def test_a_folder_that_bars_the_way_is_named_to_an_ordinary_user(
    tmp_path: Path,
) -> None:
    barred = tmp_path / "barred"
    barred.mkdir()
    make(barred / "disk.qcow2", "1M")
    barred.chmod(0)
    code = """
import os, sys
from pathlib import Path
from qemuctl.errors import ImageError
from qemuctl.image.qcow2 import read_header
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    read_header(Path(sys.argv[1]))
except ImageError as error:
    print(error); print(error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, barred / "disk.qcow2"],
        capture_output=True,
        text=True,
        check=True,
    )
    barred.chmod(0o700)
    assert "cannot read the disk image" in done.stdout
    assert "the folder does not let you in: " in done.stdout


def plausible() -> st.SearchStrategy[bytes]:
    """Headers whose fields are often nearly right."""
    offsets = st.sampled_from([0, 1, 104, 512, 1024, 65536, 196608, 2**40, 2**64 - 512])
    counts = st.sampled_from([0, 1, 2, 1023, 4096, 2**22, 2**32 - 1])

    def pack(values: tuple[int, ...]) -> bytes:
        return b"QFI\xfb" + struct.pack(">IQIIQIIQQIIQQQQII", *values)

    fields = st.tuples(
        st.sampled_from([2, 3, 4]), offsets, counts, st.integers(8, 22),
        st.sampled_from([0, 512, 2**30, 2**62, 2**64 - 1]), st.integers(0, 3), counts,
        offsets, offsets, st.sampled_from([0, 1]), counts, offsets,
        st.sampled_from([0, 1, 4, 16, 1 << 63]), st.just(0), st.just(0),
        st.integers(0, 7), st.sampled_from([0, 104, 112, 2**32 - 1]),
    )  # fmt: skip
    return st.builds(lambda f, rest: pack(f) + rest, fields, st.binary(max_size=2048))


@fuzzed(300)
@given(st.one_of(plausible(), st.binary(max_size=512)))
def test_any_bytes_give_a_header_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(raw)
    # A hole, so that huge tables are there to be read.
    if len(raw) % 2:
        os.truncate(path, 1 << 33)
    try:
        header = read_header(path)
    except ImageError:
        return
    assert 0 <= header.virtual_size < 2**63
    assert 512 <= header.cluster_size <= 2 << 20


def test_the_largest_tables_are_read_in_bounded_memory(tmp_path: Path) -> None:
    path = make(tmp_path / "disk", "1M", "-o", "cluster_size=2M")
    damaged(path, put("I", 36, (32 << 20) // 8), put("I", 116, 8))
    os.truncate(path, 1 << 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_header(path).untouched
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 16 << 10  # KiB


def test_our_reader_refuses_whatever_qemu_img_refuses_of_the_fixed_header(
    tmp_path: Path,
) -> None:
    path = make(tmp_path / "disk", "1G")
    sound = path.read_bytes()
    for offset in (4, 5, 6, 7, 8, 20, 22, 23, 36, 37, 40, 47, 48, 56, 60, 64, 71, 100):
        raw = bytearray(sound)
        raw[offset] ^= 0xFF
        path.write_bytes(raw)
        try:
            qemu_img.info(path, "qcow2")
        except ImageError:
            with pytest.raises(ImageError):
                read_header(path)
