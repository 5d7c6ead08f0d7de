"""Where everything is, and whose folders it may be in."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest

from qemuctl import paths
from qemuctl.errors import DamagedFile, HostError
from qemuctl.paths import SOCKET_PATH_MAX, VmPaths, blocking_folder, private_dir
from tests.unproven import Need, unproven


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable set, and a home folder of the test's own."""
    for name in ("QEMUCTL_HOME", *(f"XDG_{x}_HOME" for x in ("STATE", "CACHE"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_defaults_are_those_of_xdg(no_home: Path) -> None:
    assert paths.state_home() == no_home / ".local/state/qemuctl"
    assert paths.cache_home() == no_home / ".cache/qemuctl"


def test_xdg_variables_are_obeyed(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(no_home))
    assert paths.state_home() == Path("/s/qemuctl")
    assert paths.cache_home() == Path("/c/qemuctl")
    assert paths.run_home().parent == no_home / "qemuctl"


def test_sockets_are_not_where_logind_removes_them_at_logout(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    assert paths.run_home().parent == Path(f"/tmp/qemuctl-{os.getuid()}")


def test_each_state_folder_has_a_run_folder_of_its_own(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(variable: str, name: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(no_home / name))
            paths.private_dir(paths.state_home())
            return paths.run_home()

    variables = ("HOME", "XDG_STATE_HOME", "QEMUCTL_HOME")
    runs = [run(variable, name) for variable in variables for name in ("s", "t")]
    assert len({*runs}) == 6
    assert runs == [run(variable, name) for variable in variables for name in "st"]


def test_a_copy_of_a_state_folder_has_a_run_folder_of_its_own(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = paths.private_dir(paths.state_home())
    run = paths.run_home()
    kept = first.with_name("kept")
    first.rename(kept)
    shutil.copytree(kept, first)  # at the same path, as in another mount namespace
    assert (first / "id").read_text() == (kept / "id").read_text()
    assert paths.run_home() != run
    shutil.rmtree(first)
    kept.rename(first)
    assert paths.run_home() == run


def test_a_state_folder_that_is_moved_or_linked_to_keeps_its_run_folder(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = paths.private_dir(paths.state_home())
    run = paths.run_home()
    first.rename(no_home / "moved")
    first.symlink_to(no_home / "moved")
    assert paths.run_home() == run


def test_an_id_that_was_cut_short_is_refused(no_home: Path) -> None:
    state = paths.private_dir(paths.state_home())
    (state / "id").write_text("12")
    with pytest.raises(DamagedFile):
        paths.run_home()
    (state / "id").unlink()
    run = paths.made_run_home()
    assert (state / "id").stat().st_size == 33
    assert paths.run_home() == run


def test_a_look_makes_no_home(no_home: Path) -> None:
    assert paths.run_home() == paths.run_home()
    assert list(no_home.iterdir()) == []


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_relative_xdg_paths_are_ignored(
    no_home: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", value)
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert paths.state_home() == no_home / ".local/state/qemuctl"
    assert paths.run_home().is_absolute()


def test_a_runtime_folder_that_is_gone_is_not_used(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(no_home / "gone"))
    assert not paths.run_home().is_relative_to(no_home)


def test_qemuctl_home_moves_everything(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {paths.run_home()}
    for name in ("one", "two"):
        home = no_home / name
        monkeypatch.setenv("QEMUCTL_HOME", str(home))
        assert paths.state_home() == home / "state"
        assert paths.cache_home() == home / "cache"
        runs.add(paths.run_home())
    assert len(runs) == 3


def test_a_relative_home_is_the_same_as_its_absolute_path(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(no_home)
    monkeypatch.setenv("QEMUCTL_HOME", "h")
    relative = paths.state_home(), paths.run_home()
    monkeypatch.setenv("QEMUCTL_HOME", str(no_home / "h"))
    assert relative == (paths.state_home(), paths.run_home())


def test_a_very_long_home_leaves_room_for_sockets(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(no_home / ("x" * 200)))
    VmPaths.of("web").check_sockets()


def vm_with_longest_socket(size: int) -> VmPaths:
    """A VM whose longest socket path has exactly ``size`` bytes."""
    room = size - len("/r/" + "/serial.sock")
    return VmPaths(state=Path("/s"), run=Path("/r") / ("x" * room))


def test_a_socket_path_may_have_107_bytes_and_no_more(tmp_path: Path) -> None:
    vm_with_longest_socket(SOCKET_PATH_MAX).check_sockets()
    with pytest.raises(HostError, match=r"\(108 bytes, 107 at most\)") as caught:
        vm_with_longest_socket(SOCKET_PATH_MAX + 1).check_sockets()
    assert caught.value.hint


def test_107_bytes_is_what_the_kernel_takes(tmp_path: Path) -> None:
    for size in (SOCKET_PATH_MAX, SOCKET_PATH_MAX + 1):
        with socket.socket(socket.AF_UNIX) as tried:
            path = "/nowhere/" + "x" * (size - len("/nowhere/"))
            # Too long is refused as such, before the kernel looks for the folder.
            with pytest.raises(OSError) as caught:
                tried.bind(path)
        assert isinstance(caught.value, FileNotFoundError) == (size <= SOCKET_PATH_MAX)


def test_bytes_count_and_not_characters() -> None:
    vm = VmPaths(state=Path("/s"), run=Path("/r") / ("ü" * 60))
    with pytest.raises(HostError):
        vm.check_sockets()


def test_no_socket_is_longer_than_the_ones_that_are_checked() -> None:
    vm = VmPaths(state=Path("/s"), run=Path("/r"))
    assert {field.name for field in fields(vm)} == {"state", "run"}
    sockets = [
        getattr(vm, name)
        for name in dir(vm)
        if name.endswith("_socket") and isinstance(getattr(vm, name), Path)
    ]
    assert len(sockets) >= 5
    assert max(len(str(path)) for path in sockets) == len("/r/serial.sock")


def test_a_private_folder_is_only_for_its_owner(tmp_path: Path) -> None:
    path = private_dir(tmp_path / "a")
    assert path.stat().st_mode & 0o777 == 0o700


def test_every_folder_made_on_the_way_is_private_too(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_dir(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    for path in ("a", "a/b", "a/b/c"):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_open_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    path.chmod(0o755)
    private_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(HostError, match="cannot make the folder"):
        private_dir(tmp_path / "a")
    with pytest.raises(HostError) as caught:
        private_dir(tmp_path / "a" / "b")
    assert str(tmp_path / "a") in (caught.value.hint or str(caught.value))


def test_a_link_to_a_folder_of_ones_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "target")
    private_dir(tmp_path / "a")
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o700


def test_a_link_that_is_somebody_elses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "target")
    as_somebody_else(monkeypatch)
    with pytest.raises(HostError, match="not a folder of yours"):
        private_dir(tmp_path / "a")


def as_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, what exists belongs to another user."""
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    as_somebody_else(monkeypatch)
    with pytest.raises(HostError, match="not a folder of yours") as caught:
        private_dir(tmp_path / "a")
    assert "XDG_RUNTIME_DIR" in (caught.value.hint or "")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path in a shared folder which, once made, belongs to a stranger."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    path = shared / "qemuctl"
    real = Path.lstat

    def lstat(asked: Path) -> os.stat_result:
        result = real(asked)
        stranger = os.getuid() + 4321
        same = asked == path
        return os.stat_result((*result[:4], stranger, *result[5:])) if same else result

    monkeypatch.setattr(Path, "lstat", lstat)
    return path


def test_a_folder_below_one_that_somebody_else_made_in_tmp_is_refused(
    planted: Path,
) -> None:
    # Whoever owns the folder above could put another in our folder's place.
    planted.mkdir()
    planted.chmod(0o777)
    for below in ("web", "home/web"):
        with pytest.raises(HostError, match=f"not a folder of yours: {planted}$"):
            private_dir(planted / below)
    assert list(planted.iterdir()) == []


def test_a_link_that_somebody_else_made_in_tmp_is_refused(
    tmp_path: Path, planted: Path
) -> None:
    (tmp_path / "mine").mkdir()
    planted.symlink_to(tmp_path / "mine")
    with pytest.raises(HostError, match=f"not a folder of yours: {planted}$"):
        private_dir(planted / "web")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_of_ones_own_in_tmp_is_taken(tmp_path: Path) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    for _ in range(2):
        assert private_dir(shared / "qemuctl" / "web").is_dir()


def test_nothing_blocks_a_path_whose_folders_let_one_in(tmp_path: Path) -> None:
    assert blocking_folder(tmp_path / "file") is None


def test_the_first_missing_folder_is_named(tmp_path: Path) -> None:
    found = blocking_folder(tmp_path / "a" / "b" / "file")
    assert found == f"the folder does not exist: {tmp_path / 'a'}"


def test_a_file_on_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    found = blocking_folder(tmp_path / "a" / "file")
    assert found == f"not a folder: {tmp_path / 'a'}"


def test_the_folder_that_bars_the_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barred = tmp_path / "a"
    (barred / "b").mkdir(parents=True)
    barred.chmod(0o600)
    try:
        if os.geteuid() == 0:  # root may enter everywhere
            monkeypatch.setattr(os, "access", lambda path, _mode: path != barred)
        found = blocking_folder(barred / "b" / "file")
    finally:
        barred.chmod(0o700)
    assert found == f"the folder does not let you in: {barred}"


NAMELESS = 54321


def as_nameless(code: str, **env: str) -> str:
    """What a few lines print, run by a user id without an entry in passwd."""
    clean = {
        k: v for k, v in os.environ.items() if k[:4] not in ("HOME", "XDG_", "QEMU")
    }
    path = {"PYTHONPATH": str(Path(paths.__file__).parents[1])}
    # Whoever installed this Python may be the only one who can read it.
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            done = subprocess.run(
                [python, "-c", code], env=clean | path | env, cwd="/",
                user=NAMELESS, group=NAMELESS, extra_groups=[],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            if "No module named" not in done.stderr:
                assert done.returncode == 0, done.stderr
                return done.stdout.strip()
    return unproven("a user id without a name has a home", Need.USER)


HOMES = "from qemuctl.paths import *; print('qemuctl', state_home(), run_home())"


@pytest.mark.parametrize("env", [{}, {"HOME": "/"}])
def test_a_user_without_a_name_has_a_home_of_its_own(env: dict[str, str]) -> None:
    shutil.rmtree(f"/tmp/qemuctl-{NAMELESS}", ignore_errors=True)
    try:
        own = f"/tmp/qemuctl-{NAMELESS}"
        state, run = as_nameless(HOMES, **env).split()[1:]
        assert state == f"{own}/user/.local/state/qemuctl"
        assert Path(run).parent == Path(own)
        assert Path(own).stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(f"/tmp/qemuctl-{NAMELESS}", ignore_errors=True)


def test_a_home_that_can_be_written_is_taken_and_ssh_is_refused_in_a_sentence(
    tmp_path: Path,
) -> None:
    own = Path(tempfile.mkdtemp(prefix="qemuctl-tests-"))
    try:
        own.chmod(0o777)
        assert as_nameless(HOMES, HOME=str(own)).split()[1].startswith(str(own))
        code = """
from qemuctl.errors import HostError
from qemuctl.image.keys import own_key
try:
    own_key()
except HostError as error:
    print("qemuctl", error, error.hint)
"""
        words = as_nameless(code, QEMUCTL_HOME=str(own / "home"))
        assert f"needs a user with a name, and the id {NAMELESS} has none" in words
        assert "/etc/passwd" in words
    finally:
        shutil.rmtree(own)
