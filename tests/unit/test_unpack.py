"""Tars that a hostile guest made, unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
import tempfile
from hashlib import md5
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl import tars
from qemuctl.guest.conversation import CopyError
from qemuctl.guest.copy import within_umask
from qemuctl.guest.unpack import unpack
from tests.hostile import fuzzed, memory

BLOCK = tarfile.BLOCKSIZE
DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: Any
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o755
    info.size = 3 if kind == tarfile.REGTYPE else 0
    for key, value in more.items():
        setattr(info, key, value)
    return info


def tar_of(*members: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as tar:
        for one in members:
            tar.addfile(one, io.BytesIO(b"x" * one.size))
    return data.getvalue()


def unpacked(folder: Path, data: bytes) -> dict[str, str]:
    return unpack(io.BytesIO(data), folder, lambda: None)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What lies around the folder, and must be as it was after each test."""
    (tmp_path / "secret").write_text("secret")
    return tmp_path


def umask() -> str:
    return subprocess.run(
        ["sh", "-c", "umask"], capture_output=True, check=True, text=True
    ).stdout


def test_files_folders_and_links_come_as_they_were(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sums = unpacked(
        out,
        tar_of(
            member(".", DIR, mode=0o711),
            member("./closed", DIR, mode=0o500, mtime=1000),
            member("./closed/f", mode=0o6640, mtime=2000),
            member("./closed/up", LINK, "../closed/f", mtime=3000),
            member("./zz-before", LINK, "later"),
            member("./later", size=3 * 1024 * 1024, mode=0o777),
            member("./same", HARD, "./closed/f"),
            member("./ü\udcff", size=0),
        ),
    )
    empty, xxx = md5(b"").hexdigest(), md5(b"xxx").hexdigest()
    assert sums == {
        "closed/f": xxx, "same": xxx, "ü\udcff": empty,
        "later": md5(b"x" * 3 * 1024 * 1024).hexdigest(),
    }  # fmt: skip
    status = (out / "closed").stat()
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o500, 1000)
    assert out.stat().st_mode & 0o7777 == 0o711
    status = (out / "closed/f").stat()
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o640, 2000)
    # Nobody else may write to what came out of a guest.
    assert (out / "later").stat().st_mode & 0o777 == within_umask(0o777)
    assert within_umask(0o6777) == 0o777 & ~int(umask(), 8)
    assert (out / "closed/up").readlink() == Path("../closed/f")
    assert (out / "closed/up").lstat().st_mtime == 3000
    assert (out / "zz-before").read_bytes() == (out / "later").read_bytes()
    assert (out / "same").read_bytes() == b"xxx"


@pytest.mark.parametrize(
    "format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]
)
def test_long_names_come_in_every_format(tmp_path: Path, format: int) -> None:
    long = "n" * 99
    heads = [member(long, DIR), member(f"{long}/{long}")]
    if format != tarfile.USTAR_FORMAT:
        heads += [member("l", LINK, f"{long}/{long}"), member("m" * 255)]
    unpacked(tmp_path / "out", tar_of(*heads, format=format))
    assert (tmp_path / "out" / long / long).read_bytes() == b"xxx"
    if format != tarfile.USTAR_FORMAT:
        assert (tmp_path / "out/l").read_bytes() == b"xxx"


HOSTILE = {
    "a name outside": ([member("../evil")], "it lies outside"),
    "a name that comes back": ([member("d", DIR), member("d/../../evil")], "outside"),
    "a name that stays": ([member("d", DIR), member("d/../f")], "outside"),
    "an absolute name": ([member("/tmp/evil")], "outside"),
    "a folder outside": ([member("..", DIR)], "outside"),
    "a file called .": ([member("."), member("./f")], "neither"),
    "a file and a link of one name": (
        [member("l", LINK, "f"), member("l")], "there twice",
    ),
    "a link and a folder of one name": (
        [member("l", LINK, "f"), member("l", DIR), member("l/f")], "there twice",
    ),
    "a file through a link": ([member("l", LINK, "."), member("l/f")], "in no folder"),
    "a file through a hard link": (
        [member("f"), member("h", HARD, "f"), member("h/f")], "in no folder",
    ),
    "a file in a file": ([member("f"), member("f/f")], "in no folder"),
    "a file twice": ([member("f"), member("./f", size=9)], "there twice"),
    "a folder twice": ([member("d", DIR), member("d", DIR)], "there twice"),
    "no folder": ([member("d/f")], "in no folder"),
    "a link for all": ([member(".", LINK, "x")], "a link to outside"),
    "a link up": ([member("l", LINK, "..")], "a link to outside"),
    "a link far up": ([member("d", DIR), member("d/l", LINK, "../..")], "to outside"),
    "an absolute link": ([member("l", LINK, "/etc")], "to outside"),
    "an empty link": ([member("l", LINK, "")], "to outside"),
    # Where `d/d/here` is a link to the top, `here/..` is outside.
    "a link by way of a link": (
        [member("d", DIR), member("d/d", DIR), member("d/d/top", LINK, "../.."),
         member("d/d/l", LINK, "top/../secret")], "to outside",
    ),
    "a hard link outside": ([member("l", HARD, "../secret")], "it lies outside"),
    "an absolute hard link": ([member("l", HARD, "/etc/passwd")], "it lies outside"),
    "a hard link to nothing": ([member("l", HARD, "secret")], "not there"),
    "a hard link to a link": (
        [member("l", LINK, "f"), member("h", HARD, "l")], "not there",
    ),
    "a hard link to a folder": (
        [member("d", DIR), member("h", HARD, "d")], "not there",
    ),
    "a character device": ([member("d", tarfile.CHRTYPE)], "neither"),
    "a block device": ([member("d", tarfile.BLKTYPE)], "neither"),
    "a pipe": ([member("p", tarfile.FIFOTYPE)], "neither"),
    "a type that nobody knows": ([member("p", b"Z")], "neither"),
    "a time that is none": ([member("f", mtime=2**70)], "not copied"),
    "many folders": (
        [member("d/" * n + "d", DIR) for n in range(300)], "too long",
    ),
    "a long path": ([member("d/./" * 1100 + "f")], "too long"),
}  # fmt: skip


@pytest.mark.parametrize(("members", "words"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_hostile_is_refused_and_nothing_outside_changes(
    outside: Path, members: list[tarfile.TarInfo], words: str
) -> None:
    with pytest.raises(CopyError, match="holds what is not copied") as error:
        unpacked(outside / "out", tar_of(*members))
    assert words in error.value.message
    assert sorted(entry.name for entry in outside.iterdir()) == ["out", "secret"]
    assert (outside / "secret").read_text() == "secret"
    assert (outside / "secret").stat().st_nlink == 1


def test_a_file_is_not_written_through_a_link_that_appears_meanwhile(
    outside: Path,
) -> None:
    data = tar_of(member("d", DIR), member("d/f", size=9))
    out, begun = outside / "out", []

    def tick() -> None:
        begun.append(None)
        if len(begun) == 2:
            (out / "d").rmdir()
            (out / "d").symlink_to("..")

    with pytest.raises(CopyError, match="in no folder"):
        unpack(io.BytesIO(data), out, tick)
    assert sorted(entry.name for entry in outside.iterdir()) == ["out", "secret"]


def raw_head(name: str, kind: bytes, size: int) -> bytes:
    """A head with a size of the binary kind, which may be negative."""
    head = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    head[156:157] = kind
    head[124:136] = (
        b"\x80" + size.to_bytes(11, "big")
        if size >= 0
        else (256**12 + size).to_bytes(12, "big")
    )
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def pax(**words: str) -> bytes:
    text = b""
    for key, value in words.items():
        rest = f" {key.replace('_', '.')}={value}\n".encode()
        size = len(rest) + 2
        text += (b"%d" % (len(rest) + len(str(size)))) + rest
    return raw_head("x", b"x", len(text)) + text.ljust(BLOCK, b"\0")


ENDS = bytes(2 * BLOCK)
ODD = {
    "no tar": b"no tar" * 1000,
    "gzip": b"\x1f\x8b" + bytes(1000),
    "nothing": b"",
    "no end": tar_of(member("f"))[: 2 * BLOCK],
    "cut in a file": tar_of(member("f", size=BLOCK * 3))[: 2 * BLOCK],
    "damaged": tar_of(member("f"), member("g"))[: 2 * BLOCK] + b"?" * BLOCK + ENDS,
    "a size below zero": raw_head("f", b"0", -BLOCK) + ENDS,
    "a long name below zero": raw_head("f", b"L", -BLOCK) + ENDS,
    "a long name of gigabytes": raw_head("f", b"L", 1 << 40) + ENDS,
    "words below zero": raw_head("f", b"x", -1024) + ENDS,
    "a file with holes": raw_head("f", b"S", 1 << 50) + ENDS,
    "a PAX size below zero": pax(size="-512") + tar_of(member("f")),
    "a PAX size that is none": pax(size="many") + tar_of(member("f"))[:BLOCK],
    "a PAX file with holes": pax(GNU_sparse_size="99", GNU_sparse_numblocks="1")
    + tar_of(member("f")),
    "a PAX name outside": pax(path="../evil") + tar_of(member("f")),
    "a PAX name with a NUL": pax(path="a\0b") + tar_of(member("f")),
    "a PAX link outside": pax(linkpath="/etc") + tar_of(member("f", LINK, "g")),
    "a PAX time that is none": pax(mtime="nan") + tar_of(member("f")),
    "words about all files": raw_head("g", b"g", 0) + tar_of(member("f")),
    "a PAX file with a list of holes": pax(
        GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="9"
    ) + tar_of(member("f")),
    "words about words": pax(comment="x") * 3000 + tar_of(member("f")),
}  # fmt: skip


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_what_is_no_honest_tar_is_refused_and_ends(outside: Path, data: bytes) -> None:
    with pytest.raises(CopyError, match="holds what is not copied"):
        unpacked(outside / "out", data)
    assert sorted(entry.name for entry in outside.iterdir()) == ["out", "secret"]


class Endless(io.RawIOBase):
    """A tar of empty files, links and folders, one after the other."""

    def __init__(self) -> None:
        self.number, self.left = 0, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self.left) < size:
            self.number += 1
            kind = (tarfile.REGTYPE, LINK, DIR)[self.number % 3]
            one = member(f"{self.number:040}", kind, "x" * (kind == LINK), size=0)
            self.left += one.tobuf(tarfile.GNU_FORMAT)
        data, self.left = self.left[:size], self.left[size:]
        return data

    def tell(self) -> int:
        return 0


def test_members_without_an_end_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "_NAMES", 512 * 1024)
    endless = Endless()
    with memory(2 * 1024 * 1024):
        with pytest.raises(CopyError, match="too many files"):
            unpack(cast(BinaryIO, endless), tmp_path / "out", lambda: None)
    assert endless.number > 1000


BLOCKS = (
    st.sampled_from(list(ODD.values())).map(lambda data: data[: 4 * BLOCK])
    | st.sampled_from([bytes(BLOCK), b"x" * BLOCK, tar_of(member("d", DIR))])
    | st.builds(
        raw_head,
        st.sampled_from(["f", "d/f", "../x", "/x", "a" * 99, "ü"]),
        st.sampled_from([bytes([n]) for n in b"0123456789LKxgXSDMNV\0"]),
        st.sampled_from([0, 1, 511, 512, 513, 1 << 20, 1 << 40, -1, -512]),
    )
    | st.dictionaries(
        st.sampled_from([
            "path", "linkpath", "size", "mtime", "uid", "hdrcharset", "comment",
            "GNU_sparse_map", "GNU_sparse_size", "GNU_sparse_major",
            "GNU_sparse_minor", "GNU_sparse_name", "GNU_sparse_realsize",
        ]),
        st.sampled_from(["", "0", "1", "-1", "0,1", "1e999", "x", "../x", "BINARY"]),
        max_size=4,
    ).map(lambda words: pax(**words))
)  # fmt: skip


@fuzzed(150)
@given(
    st.lists(BLOCKS, max_size=5).map(b"".join),
    st.lists(st.tuples(st.integers(0, 4 * BLOCK), st.integers(1, 255)), max_size=3),
)
def test_any_tar_stays_inside_or_is_refused(
    data: bytes, changes: list[tuple[int, int]]
) -> None:
    changed = bytearray(data)
    for at, value in changes:
        if at < len(changed):
            changed[at] ^= value
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(CopyError):
            unpacked(Path(folder, "out"), bytes(changed) + ENDS)
        assert [entry.name for entry in Path(folder).iterdir()] == ["out"]


def test_no_descriptor_is_left_open(outside: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for members, _ in HOSTILE.values():
        with pytest.raises(CopyError):
            unpacked(outside / f"out{len(os.listdir(outside))}", tar_of(*members))  # noqa: PTH208
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208
