"""SIGKILL of pytest, or of one of its workers, at any moment: nothing is left."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qemuctl import paths
from tests.conftest import survivors
from tests.guest.conftest import qemu  # noqa: F401 (a fixture)
from tests.guest.inner_pytest import LEAN, left, project, running

pytestmark = pytest.mark.timeout(300)

# Of each lane: lanes run side by side, for a round is mostly waiting.
ROUNDS = 25
LANES = (7, 8)
# By then some tests have had their guests.
LATEST = 2.0
GONE_WITHIN = 3.0
WORKERS_GONE_WITHIN = 20.0

TESTS = """
@pytest.mark.parametrize("number", range(100))
def test_again(vm, number):
    assert vm.run("true").ok
"""


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that do a pytest's work; itself, where it has no others."""
    main = psutil.Process(process.pid)
    found = [
        child
        for child in main.children()
        if any("execnet" in word for word in child.cmdline())
    ]
    return found or [main]


def guests(home: Path) -> list[psutil.Process]:
    """The QEMUs that run."""
    return [process for process in survivors(home) if is_qemu(process)]


def is_qemu(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("qemu")
    return False


def owned_by(pid: int) -> list[Path]:
    """The folders of throwaway VMs that a process has begun."""
    found = []
    for marker in paths.vms_dir().glob("*/throwaway"):
        with contextlib.suppress(FileNotFoundError):
            found += [marker.parent] if marker.read_text() == str(pid) else []
    return found


@pytest.mark.parametrize("seed", LANES)
def test_a_killed_pytest_or_worker_leaves_nothing_and_blocks_nobody(
    home: Path,
    qemu: Path,  # noqa: F811
    tmp_path: Path,
    until: Callable[..., object],
    seed: int,
) -> None:
    folder = project(tmp_path / "project", TESTS)
    chance = random.Random(seed)
    met = {"nothing yet": 0, "files": 0, "QEMU": 0}
    for number in range(ROUNDS):
        many = ["-n", "2"] if number % 3 else []
        # With room for one guest the second worker waits, and may be killed so.
        env = {"QEMUCTL_BUDGET_CPUS": chance.choice("12")}
        with running(folder, "-q", *LEAN, *many, env=env) as process:
            if number % 2:  # in the middle of a guest's life
                until(lambda: guests(home), 30.0)
                time.sleep(chance.uniform(0, 1))
            else:
                time.sleep(chance.uniform(0.3, LATEST))
            met["QEMU" if guests(home) else "files" if left() else "nothing yet"] += 1
            if number % 3 == 2:
                victim = chance.choice(workers(process))
                victim.kill()
                until(lambda: not owned_by(victim.pid), GONE_WITHIN)  # noqa: B023
                time.sleep(chance.uniform(0, 0.5))
            process.kill()
            process.wait()
            until(lambda: not guests(home) and not left(), GONE_WITHIN)
            # A worker that had just begun notices only now that nobody wants it.
            until(lambda: not survivors(home), WORKERS_GONE_WITHIN)
        assert left() == []
    assert met["QEMU"] >= ROUNDS // 3, met
    with running(
        folder, "-q", *LEAN, "-k", "[0]", env={"QEMUCTL_BUDGET_CPUS": "1"}
    ) as last:
        text, _ = last.communicate(timeout=60)
    assert last.returncode == 0, text
    assert "waits for room" not in text
