"""The doctor looks, says what to do, and never fails itself."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from qemuctl.errors import HostError
from qemuctl.host import doctor
from qemuctl.host.binary import Binary
from qemuctl.host.discovery import from_json
from qemuctl.host.doctor import Check, checks
from qemuctl.spec.model import Spec

RECORDED = Path(__file__).parent.parent / "golden" / "qemu-7.2.json"
BINARY = from_json(Path("/usr/bin/qemu-system-x86_64"), RECORDED.read_bytes())


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "find_qemu", lambda _: BINARY.path)
    monkeypatch.setattr(doctor, "probe", lambda _: BINARY)


def found() -> dict[str, Check]:
    return {check.name: check for check in checks()}


def offer(monkeypatch: pytest.MonkeyPatch, binary: Binary) -> None:
    monkeypatch.setattr(doctor, "probe", lambda _: binary)


def test_every_trouble_comes_with_advice() -> None:
    for check in checks():
        assert check.detail
        assert check.status == "ok" or check.advice, check


def test_the_names_of_the_checks_are_different() -> None:
    names = [check.name for check in checks()]
    assert len(names) == len(set(names))
    assert {"QEMU", "accelerator", "sandbox", "qemu-img", "memory"} <= set(names)


def test_a_missing_qemu_fails_and_the_rest_is_still_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(spec: Spec) -> Path:
        raise HostError("QEMU is not installed", hint="install it")

    monkeypatch.setattr(doctor, "find_qemu", missing)
    seen = found()
    assert seen["QEMU"] == Check("QEMU", "fail", "QEMU is not installed", "install it")
    assert "memory" in seen
    assert "accelerator" not in seen


def test_missing_features_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, replace(BINARY, options=frozenset(), netdevs=frozenset()))
    seen = found()
    assert seen["sandbox"].status == "warn"
    assert seen["user network"].status == "warn"


def test_a_qemu_without_any_accelerator_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, replace(BINARY, accels=frozenset()))
    assert found()["accelerator"].status == "fail"


@pytest.mark.parametrize(
    ("free", "status"), [(2**34, "ok"), (2**29, "warn"), (9, "fail")]
)
def test_memory_is_graded(
    monkeypatch: pytest.MonkeyPatch, free: int, status: str
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: free)
    assert found()["memory"].status == status


@pytest.mark.parametrize(
    ("free", "status"), [(2**34, "ok"), (2**30, "warn"), (9, "fail")]
)
def test_disk_space_is_graded(
    monkeypatch: pytest.MonkeyPatch, free: int, status: str
) -> None:
    monkeypatch.setattr(doctor, "free_space", lambda _: free)
    assert found()["state folder"].status == status


def test_a_home_that_is_a_file_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QEMUCTL_HOME", str(tmp_path / "file"))
    assert found()["state folder"].status == "fail"


def test_a_run_folder_on_a_long_path_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / ("x" * 100)
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    check = found()["run folder"]
    assert check.status == "fail"
    assert "shorter path" in (check.advice or "")


def test_the_room_for_names_is_what_fits_a_socket(tmp_path: Path) -> None:
    folder = Path("/run/user/1000/qemuctl")
    room = doctor._name_room(folder)
    longest = folder / ("n" * room) / "serial.sock"
    assert len(os.fsencode(longest)) == 107


def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    assert found()["open files"].status == "warn"


def test_a_missing_tool_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    seen = found()
    assert seen["qemu-img"].status == "fail"
    assert seen["apt-get"].status == "warn"
