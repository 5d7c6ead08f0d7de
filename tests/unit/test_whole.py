"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import ImageError
from qemuctl.image import whole as whole_module
from qemuctl.image.whole import whole
from tests.unit.disk_images import MIB, ODD, raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ODD
    path.mkdir()
    return path


@pytest.fixture
def data() -> bytes:
    """A disk of 3 MiB: data, a hole, data."""
    return os.urandom(MIB) + bytes(MIB) + os.urandom(MIB)


def test_a_file_appears_as_a_whole(folder: Path) -> None:
    path = folder / "file"
    with whole(path) as fresh:
        assert fresh.parent == folder
        assert not fresh.exists()
        fresh.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(folder.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(folder: Path) -> None:
    path = raw(folder / "file", b"old")

    def fail() -> None:
        with whole(path, replace=True) as fresh:
            fresh.write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(folder.iterdir()) == [path]


def test_a_file_that_exists_is_replaced_only_on_demand(folder: Path) -> None:
    path = raw(folder / "file", b"old")
    path.chmod(0o640)
    with pytest.raises(ImageError, match="there is a file already"):
        with whole(path):
            pytest.fail("it was to be refused before any work")
    with whole(path, replace=True) as fresh:
        fresh.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_appears_meanwhile_is_kept(folder: Path) -> None:
    path = folder / "file"
    fresh = whole(path)
    fresh.__enter__().write_bytes(b"ours")
    path.write_bytes(b"theirs")
    with pytest.raises(ImageError, match="there is a file already"):
        fresh.__exit__(None, None, None)
    assert path.read_bytes() == b"theirs"
    assert list(folder.iterdir()) == [path]


def test_two_at_once_do_not_meet(folder: Path) -> None:
    path = folder / "file"
    with whole(path, replace=True) as one, whole(path, replace=True) as two:
        one.write_bytes(b"one")
        two.write_bytes(b"two")
    assert path.read_bytes() == b"one"
    assert list(folder.iterdir()) == [path]


def test_what_a_dead_process_left_is_removed_and_a_living_ones_kept(
    folder: Path,
) -> None:
    code = """
import os, sys
from pathlib import Path
from qemuctl.image.whole import whole
with whole(Path(sys.argv[1])) as fresh:
    fresh.write_text("half")
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code, folder / "file"], check=False)
    (left,) = folder.iterdir()
    other = raw(folder / ".qemuctl-00000000-1-1-0.new", b"another host's")
    odd = raw(folder / left.name.replace("-0.new", "x-y.new"), b"not ours")
    with whole(folder / "a") as living, whole(folder / "b") as fresh:
        assert not left.exists()
        living.write_text("a")
        fresh.write_text("b")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["a", "b", other.name, odd.name]
    )


def test_a_link_stays_a_link(folder: Path) -> None:
    path = raw(folder / "file", b"old")
    link = folder / "link"
    link.symlink_to(path.name)
    with whole(link, replace=True) as fresh:
        fresh.write_bytes(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_a_folder_is_not_replaced_and_a_missing_one_is_named(folder: Path) -> None:
    for path, words in (
        (folder, "not a file"),
        (folder / "no" / "x", "no such folder"),
    ):
        with pytest.raises(ImageError, match=words):
            with whole(path, replace=True):
                pytest.fail("it was to be refused before any work")


def test_content_and_name_are_on_the_disk_before_and_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    settle = whole_module._settle
    monkeypatch.setattr(whole_module, "_sync", lambda path: order.append(path.name))

    def settling(*arguments: Any) -> None:
        order.append("settle")
        settle(*arguments)

    monkeypatch.setattr(whole_module, "_settle", settling)
    with whole(folder / "file") as fresh:
        fresh.write_bytes(b"x")
    assert order == [fresh.name, "settle", folder.name]
