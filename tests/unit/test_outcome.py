"""How a run ended, told from the files that outlived it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qemuctl.paths import VmPaths
from qemuctl.process import Exited, read_exit
from qemuctl.registry.records.outcome import Outcome, outcome

PANIC = {"event": "GUEST_PANICKED", "data": {"action": "pause"}}


def shutdown(reason: str) -> dict[str, Any]:
    return {"event": "SHUTDOWN", "data": {"guest": False, "reason": reason}}


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    return VmPaths(state=tmp_path, run=tmp_path / "run")


def ended(
    paths: VmPaths, status: str | None, *events: dict[str, Any], log: str = ""
) -> Outcome:
    paths.record.touch()
    if status is not None:
        paths.exit.write_text(status)
    paths.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    paths.qemu_log.write_text(log)
    found = outcome(paths)
    assert found is not None
    return found


def test_a_vm_that_never_ran_has_no_outcome(paths: VmPaths) -> None:
    assert outcome(paths) is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("host-qmp-quit", "stopped"),
        ("host-signal", "terminated"),
        ("host-ui", "stopped at its window"),
        ("host-error", "stopped by an error of QEMU"),
        ("guest-shutdown", "stopped by the guest"),
        ("guest-reset", "ended by a reboot of the guest"),
        ("guest-panic", "guest panicked"),
        ("host-qmp-system-reset", "ended by a reset"),
        ("subsystem-reset", "ended by a reset"),
        ("snapshot-load", "ended by a snapshot"),
        ("something-new", "ended"),
    ],
)
def test_the_reason_of_the_shutdown_makes_the_text(
    paths: VmPaths, reason: str, text: str
) -> None:
    found = ended(paths, "0\n", shutdown(reason))
    assert (found.text, found.status, found.reason) == (text, 0, reason)
    assert found.clean


def test_status_0_without_a_reason_is_just_an_end(paths: VmPaths) -> None:
    assert ended(paths, "0\n").text == "ended"


def test_the_last_reason_counts(paths: VmPaths) -> None:
    found = ended(paths, "0", shutdown("guest-reset"), shutdown("host-qmp-quit"))
    assert found.reason == "host-qmp-quit"


def test_a_signal_is_named(paths: VmPaths) -> None:
    found = ended(paths, "137\n")
    assert found.status == -9
    assert found.text == "killed by signal 9 (SIGKILL)"
    assert not found.clean


def test_a_signal_beats_the_reason_of_an_earlier_shutdown(paths: VmPaths) -> None:
    assert "SIGSEGV" in ended(paths, "139", shutdown("host-qmp-quit")).text


def test_a_signal_without_a_name_is_told_by_its_number(paths: VmPaths) -> None:
    # 35 is the first real-time signal that has no name of its own.
    assert ended(paths, str(128 + 35)).text == "killed by signal 35"


def test_a_status_beyond_every_signal_is_a_status(paths: VmPaths) -> None:
    found = ended(paths, "255", log="qemu: no\n")
    assert found.status == 255
    assert found.text == "failed with status 255: qemu: no"


def test_a_failure_has_qemus_last_words(paths: VmPaths) -> None:
    found = ended(paths, "1\n", log="first\nqemu: -x: invalid option\n")
    assert found.text == "failed with status 1: qemu: -x: invalid option"
    assert not found.clean


def test_a_failure_without_words_is_still_told(paths: VmPaths) -> None:
    assert ended(paths, "1\n").text == "failed with status 1"


def test_a_panic_is_told_whatever_the_status(paths: VmPaths) -> None:
    for status in ("0", "137"):
        found = ended(paths, status, PANIC, shutdown("host-qmp-quit"))
        assert found.text == "guest panicked"
        assert found.panicked
        assert not found.clean


@pytest.mark.parametrize("content", [None, "", "rubbish", "\0"])
def test_an_end_that_nobody_wrote_down_is_told_as_such(
    paths: VmPaths, content: str | None
) -> None:
    found = ended(paths, content, shutdown("host-qmp-quit"))
    assert found.text == "ended, nobody saw how"
    assert (found.status, found.at) == (None, None)
    assert not found.clean


def test_an_exit_file_alone_is_enough(paths: VmPaths) -> None:
    paths.exit.write_text("0\n")
    os.utime(paths.exit, (1000, 1000))
    assert outcome(paths) == Outcome(0, None, False, 1000.0, "ended")


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ("0", 0),
        ("1", 1),
        ("128", 128),
        ("129", -1),
        ("143", -15),
        ("192", -64),
        ("193", 193),
        ("255", 255),
    ],
)
def test_a_status_over_128_is_a_signal(
    tmp_path: Path, written: str, status: int
) -> None:
    path = tmp_path / "exit"
    path.write_text(written + "\n")
    assert read_exit(path).status == status


def test_no_exit_file_is_an_unknown_end(tmp_path: Path) -> None:
    assert read_exit(tmp_path / "exit") == Exited(None, None)
