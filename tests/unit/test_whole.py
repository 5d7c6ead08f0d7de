"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import ImageError
from qemuctl.image import whole as whole_module
from qemuctl.image.whole import scratch, whole
from tests.unit.disk_images import MIB, ODD, raw
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
from qemuctl.image.whole import scratch, whole
with whole(Path(sys.argv[1])) as fresh:
    fresh.write_text("half")
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code, folder / "file"], check=False)
    left = sorted(folder.iterdir())
    assert [path.suffix for path in left] == [".lock", ".new"]
    odd = [
        raw(folder / f"{name}.lock", b"not ours")
        for name in (left[0].stem + "-", left[0].stem[:-1], ".qemuctl-x", "qemuctl-a")
    ]
    with whole(folder / "a") as living, whole(folder / "b") as fresh:
        assert not any(path.exists() for path in left)
        living.write_text("a")
        fresh.write_text("b")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["a", "b", *(path.name for path in odd)]
    )


def test_a_process_of_another_pid_namespace_is_not_taken_for_a_dead_one(
    folder: Path,
) -> None:
    code = """
import sys
from pathlib import Path
from qemuctl.image.whole import sweep
sweep(Path(sys.argv[1]))
"""
    enter = in_small_mounts("other pid namespaces")
    space = [*enter, "--pid", "--fork", "--mount-proc"]
    with whole(folder / "file") as fresh:
        fresh.write_text("x")
        subprocess.run([*space, sys.executable, "-c", code, folder], check=True)
        assert fresh.exists()


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


def test_a_folder_that_cannot_be_written_to_is_told_before_any_work() -> None:
    code = """
import os, sys
from pathlib import Path
from qemuctl.errors import ImageError
from qemuctl.image.whole import scratch, whole
folder = Path(sys.argv[1])
os.chdir(folder)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for context in (whole(Path("file")), scratch(Path("."))):
    try:
        with context:
            print("it was to be refused before any work")
    except ImageError as error:
        print(error)
"""
    # Not where pytest has its folders: they let in nobody else.
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", code, folder],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"cannot write {folder / 'file'}: permission denied",
        "cannot write .: permission denied",
    ]


def test_errors_name_the_file_that_is_wanted(folder: Path) -> None:
    path = folder / "file"

    def fail(error: Callable[[Path], Exception]) -> None:
        with whole(path) as fresh:
            fresh.write_bytes(b"half")
            raise error(fresh)

    with pytest.raises(ImageError) as caught:
        fail(lambda fresh: ImageError(f"bad: {fresh}"))
    assert str(caught.value) == f"bad: {path}"
    with pytest.raises(ImageError) as caught:
        fail(lambda _fresh: OSError(errno.ENOSPC, "No space"))
    assert str(caught.value) == f"no room left to write file: {folder}"
    with pytest.raises(IsADirectoryError):
        fail(lambda _fresh: IsADirectoryError())
    assert list(folder.iterdir()) == []


def test_a_scratch_folder_goes_with_its_block_or_with_the_next_file(
    folder: Path,
) -> None:
    code = """
import os, sys
from pathlib import Path
from qemuctl.image.whole import scratch
with scratch(Path(sys.argv[1])) as made:
    (made / "half").touch()
    os._exit(9)
"""
    with scratch(folder) as made:
        (made / "part").touch()
        with whole(folder / "file") as fresh:
            fresh.touch()
        assert (made / "part").exists()
    assert [path.name for path in folder.iterdir()] == ["file"]
    subprocess.run([sys.executable, "-c", code, folder], check=False)
    assert len(list(folder.iterdir())) == 3
    with whole(folder / "other") as fresh:
        fresh.touch()
    assert sorted(path.name for path in folder.iterdir()) == ["file", "other"]


def test_content_and_name_are_on_the_disk_before_and_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    settle = whole_module._settle
    monkeypatch.setattr(whole_module, "sync", lambda path: order.append(path.name))

    def settling(*arguments: Any) -> None:
        order.append("settle")
        settle(*arguments)

    monkeypatch.setattr(whole_module, "_settle", settling)
    with whole(folder / "file") as fresh:
        fresh.write_bytes(b"x")
    assert order == [fresh.name, "settle", folder.name]
