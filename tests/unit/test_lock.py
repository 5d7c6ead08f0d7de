"""One lock a VM: asked for without being taken, let go of by the kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qemuctl.process import at_work, held, runs, take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_nobody_holds_a_lock_that_does_not_exist(path: Path) -> None:
    assert not held(path)
    assert not path.exists()


def test_nobody_holds_a_lock_in_a_folder_that_is_none(path: Path) -> None:
    path.touch()
    assert not held(path / "lock")


def test_one_takes_it_and_the_next_gets_none(path: Path) -> None:
    fd = take(path)
    assert fd is not None
    assert held(path)
    assert take(path) is None
    assert held(path)
    os.close(fd)
    assert not held(path)


def test_it_can_be_taken_again_after_it_was_let_go(path: Path) -> None:
    for _ in range(2):
        fd = take(path)
        assert fd is not None
        os.close(fd)


def test_asking_neither_takes_it_nor_lets_it_go(path: Path) -> None:
    path.touch()
    assert not held(path)
    fd = take(path)
    assert fd is not None
    # A classic POSIX lock would go when any descriptor of the file is closed.
    assert held(path)
    assert take(path) is None
    os.close(fd)


def test_a_command_at_work_is_told_from_a_vm(path: Path) -> None:
    assert not runs(path)
    assert not at_work(path)
    for to_work in (True, False):
        fd = take(path, to_work=to_work)
        assert fd is not None
        assert held(path)
        assert at_work(path) == to_work
        assert runs(path) != to_work
        assert take(path) is None
        assert take(path, to_work=True) is None
        os.close(fd)
    assert not held(path)


def test_only_its_owner_can_open_it(path: Path) -> None:
    fd = take(path)
    assert fd is not None
    os.close(fd)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_child_that_inherits_it_holds_it_until_the_kernel_lets_go(
    path: Path, processes: list[subprocess.Popen[Any]], until: Any
) -> None:
    fd = take(path)
    assert fd is not None
    child = subprocess.Popen(["sleep", "60"], pass_fds=[fd])
    processes.append(child)
    os.close(fd)
    assert held(path)
    assert take(path) is None
    child.kill()
    child.wait()
    assert not held(path)


def test_a_child_does_not_inherit_it_by_accident(
    path: Path, processes: list[subprocess.Popen[Any]]
) -> None:
    fd = take(path)
    assert fd is not None
    processes.append(subprocess.Popen(["sleep", "60"], close_fds=False))
    os.close(fd)
    assert not held(path)


def test_a_lock_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "nowhere" / "lock")
