"""What is in a file: the same wherever its holes are, another for each other byte."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qemuctl.errors import ImageError
from qemuctl.image import digests
from qemuctl.image.digests import Stamp, compute, digest
from qemuctl.thread import CalledOff

MIB = 1 << 20
SIZE = 4 * MIB


def sparse(path: Path, parts: dict[int, bytes], size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in parts.items():
            file.seek(at)
            file.write(data)
    return path


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a while later, when what was just written counts as settled."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.dictionaries(
        st.integers(0, SIZE - 16), st.binary(min_size=1, max_size=16), max_size=4
    )
)
def test_holes_and_zeros_are_the_same(tmp_path: Path, parts: dict[int, bytes]) -> None:
    holes = sparse(tmp_path / "holes", parts)
    full = tmp_path / "full"
    full.write_bytes(holes.read_bytes())
    assert full.stat().st_blocks * 512 >= SIZE
    assert compute(holes) == compute(full)


@pytest.mark.parametrize("at", [0, MIB - 1, MIB, 3 * MIB + 5, SIZE - 1])
def test_each_byte_counts_and_so_does_its_place(tmp_path: Path, at: int) -> None:
    before = compute(sparse(tmp_path / "file", {}))
    one = compute(sparse(tmp_path / "file", {at: b"\1"}))
    other = compute(sparse(tmp_path / "file", {(at + MIB) % SIZE: b"\1"}))
    assert len({before, one, other}) == 3


def test_zeros_at_the_end_count(tmp_path: Path) -> None:
    short = compute(sparse(tmp_path / "file", {0: b"x"}, SIZE))
    assert compute(sparse(tmp_path / "file", {0: b"x"}, SIZE + 1)) != short
    assert compute(sparse(tmp_path / "file", {}, 0)) != short


@pytest.mark.usefixtures("bare_home", "aged")
def test_what_is_known_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sparse(tmp_path / "file", {0: b"x"})
    found = digest(path)
    monkeypatch.setattr(digests, "compute", lambda *_: "read again")
    assert digest(path) == found
    os.utime(path, ns=(1, 1))
    assert digest(path) == "read again"


@pytest.mark.usefixtures("bare_home", "aged")
def test_another_content_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", {0: b"x"})
    found, before = digest(path), path.stat()
    with path.open("r+b") as file:
        file.write(b"y")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest(path) != found


@pytest.mark.usefixtures("bare_home")
def test_what_was_written_this_moment_is_not_kept(tmp_path: Path) -> None:
    digest(sparse(tmp_path / "file", {0: b"x"}))
    assert not list((tmp_path / "home").rglob("*.json"))


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize(
    "damaged", [b"", b"{", b"[]", b"null", b'{"stamp": {}}', b'{"stamp": {"a": 1}}']
)
def test_a_damaged_answer_is_not_believed(
    bare_home: Path, tmp_path: Path, damaged: bytes
) -> None:
    path = sparse(tmp_path / "file", {0: b"x"})
    found = digest(path)
    kept = next(bare_home.rglob("*.json"))
    kept.write_bytes(damaged)
    assert digest(path) == found
    assert kept.read_bytes() != damaged


@pytest.mark.usefixtures("aged")
def test_a_cache_that_cannot_be_written_costs_time_only(
    bare_home: Path, tmp_path: Path
) -> None:
    path = sparse(tmp_path / "file", {0: b"x"})
    bare_home.mkdir()
    (bare_home / "cache").write_text("not a folder")
    assert digest(path) == compute(path)


@pytest.mark.usefixtures("bare_home")
def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read .*nothing: No such file"):
        digest(tmp_path / "nothing")


@pytest.mark.usefixtures("bare_home", "aged")
def test_work_that_is_called_off_leaves_no_answer(tmp_path: Path) -> None:
    def off() -> None:
        raise CalledOff

    path = sparse(tmp_path / "file", {0: b"x"})
    with pytest.raises(CalledOff):
        digest(path, off)
    assert not list((tmp_path / "home").rglob("*.json"))


def test_a_stamp_is_not_kept_by_a_copy(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", {})
    copy = sparse(tmp_path / "copy", {})
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert Stamp.of(copy) != Stamp.of(path)


def test_a_device_is_no_file_that_could_be_told_from_another() -> None:
    with pytest.raises(ImageError, match="/dev/zero"):
        digest(Path("/dev/zero"))
