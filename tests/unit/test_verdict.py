"""What became of a guest, and where its files go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import LaunchError, UnexpectedExit, WaitTimeout
from qemuctl.registry.records.outcome import Outcome
from qemuctl.testing.artifacts import folder_name
from qemuctl.testing.verdict import never_ready, oom_kills, verdict

STILL = "QEMU still ran then"


def ended(status: int, text: str, reason: str | None = None) -> Outcome:
    return Outcome(status, reason, panicked=False, at=1.0, text=text)


KILLED = ended(-9, "killed by signal 9 (SIGKILL)")
SEGV = ended(-11, "killed by signal 11 (SIGSEGV)")
OOM = "[ 6.1] Out of memory: Killed process 160 (awk)\n"


CASES: list[tuple[Outcome | None, BaseException | None, dict[str, Any], list[str]]] = [
    (
        None,
        AssertionError(),
        {},
        ["nothing is known to be wrong with the guest: it runs"],
    ),
    (
        None,
        WaitTimeout("a port", 2),
        {},
        ["time-out: timed out after 2 s: waiting for a port", STILL],
    ),
    (
        None,
        AssertionError("Timeout (>3.0s) from pytest-timeout."),
        {},
        ["time-out: Timeout (>3.0s) from pytest-timeout.", STILL],
    ),
    (
        SEGV,
        UnexpectedExit("x", status=-11),
        {},
        ["QEMU crashed: killed by signal 11 (SIGSEGV)"],
    ),
    (KILLED, None, {}, ["QEMU ended: killed by signal 9 (SIGKILL)"]),
    (
        KILLED,
        None,
        {"host_ran_out": True},
        [f"out of memory on the host, whose kernel killed QEMU: {KILLED.text}"],
    ),
    (
        ended(0, "stopped by the guest", "guest-shutdown"),
        None,
        {},
        ["the guest went off: it shut down by itself"],
    ),
    (ended(1, "failed with status 1"), None, {}, ["QEMU ended: failed with status 1"]),
    (
        None,
        None,
        {"console": OOM},
        ["out of memory in the guest: Out of memory: Killed process 160 (awk)", STILL],
    ),
    (None, None, {"panicked": True}, ["guest panic", STILL]),
    (
        ended(1, "guest panicked"),
        None,
        {"panicked": True, "console": "[ 1.0] Kernel panic - not syncing: why\nmore"},
        ["guest panic: Kernel panic - not syncing: why"],
    ),
]


@pytest.mark.parametrize(("outcome", "error", "facts", "lines"), CASES)
def test_the_verdict_names_what_went_wrong(
    outcome: Outcome | None,
    error: BaseException | None,
    facts: dict[str, Any],
    lines: list[str],
) -> None:
    said = verdict(outcome, error, **{"console": "", **facts})
    assert said.splitlines() == lines


def test_a_time_out_that_led_to_another_error_is_found() -> None:
    error = AssertionError()
    error.__cause__ = ValueError()
    error.__cause__.__context__ = WaitTimeout("success", 1)
    assert verdict(None, error, console="").startswith("time-out: ")


def test_of_a_guest_that_never_was_its_error_tells() -> None:
    assert never_ready(LaunchError("no")) == "there was no guest: no"
    tail = "[ 1.0] Kernel panic - not syncing: why\n"
    for error in (
        UnexpectedExit("it ended", status=1, log_tail=tail),
        WaitTimeout("the agent", 1, console_tail=tail),
    ):
        first, panic = never_ready(error).splitlines()
        assert first == f"there was no guest: {error}"
        assert panic == "guest panic: Kernel panic - not syncing: why"


def test_the_kernel_s_count_of_processes_killed_for_memory_is_read(
    tmp_path: Path,
) -> None:
    vmstat = tmp_path / "vmstat"
    assert oom_kills(vmstat) == 0
    vmstat.write_text("nr_free_pages 1\noom_kill 7\n")
    assert oom_kills(vmstat) == 7


def test_each_test_has_a_folder_of_its_own() -> None:
    name = folder_name("a/test_b.py::TestC::test_d[x]")
    assert name.startswith("a-test_b.py.TestC.test_d[x]-")
    names = {
        folder_name(f"t.py::t[{value}]") for value in ("a b", "a/b", "a_b", "a\nb")
    }
    assert len(names) == 4
    assert all("/" not in name and "\n" not in name for name in names)
    long = {folder_name("t.py::t[" + "x" * 300 + end) for end in "12"}
    assert len(long) == 2
    assert all(len(name) < 200 for name in long)
