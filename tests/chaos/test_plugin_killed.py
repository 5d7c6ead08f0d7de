"""SIGKILL of pytest, or of one of its workers, at chosen moments: nothing is left."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from qemuctl import paths
from tests.conftest import survivors
from tests.guest.conftest import Home
from tests.guest.inner_pytest import LEAN, left, project, running
from tests.steps import Cut

GONE_WITHIN = 20.0
# A guest's start, its use and its end, as the plugin's own process sees them.
STEPS = (
    "make throwaway", "start sh shepherd.sh", "rename process.json", "qmp cont",
    "qmp quit",
)  # fmt: skip

TESTS = """
@pytest.mark.parametrize("number", range(100))
def test_again(vm, number):
    assert vm.run("true").ok
"""
# Of two workers one alone is killed, and once: its successor has another name.
CONFTEST = """
import os
from pathlib import Path
from tests import steps

if os.environ.get("PYTEST_XDIST_WORKER") == os.environ.get("VICTIM"):
    Path("victim").write_text(str(os.getpid()))
    steps.install()
"""
ROOT = Path(__file__).parents[2]


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


@dataclass(frozen=True)
class Chaos:
    """A project of a hundred tests with a guest each, and what is left of its runs."""

    home: Path
    folder: Path
    until: Callable[..., object]

    @contextlib.contextmanager
    def running(
        self, *arguments: str, cut: Cut | None = None, **env: str
    ) -> Iterator[subprocess.Popen[str]]:
        """A pytest that is killed at the end, and leaves nothing."""
        given = {"PYTHONPATH": str(ROOT), **(cut.env if cut else {}), **env}
        with running(self.folder, "-q", *LEAN, *arguments, env=given) as process:
            yield process
            process.kill()
            process.wait()
            self.until(lambda: not guests(self.home) and not left(), GONE_WITHIN)
            # A worker that had just begun notices only now that nobody wants it.
            self.until(lambda: not survivors(self.home), GONE_WITHIN)

    def check(self) -> None:
        """The next one has its guests, and waits for nobody."""
        one = {"PYTHONPATH": str(ROOT), "QEMUCTL_BUDGET_CPUS": "1"}
        with running(self.folder, "-q", *LEAN, "-k", "[0]", env=one) as last:
            text, _ = last.communicate(timeout=120)
        assert last.returncode == 0, text
        assert "waits for room" not in text


@pytest.fixture
def chaos(here: Home, tmp_path: Path, until: Callable[..., object]) -> Chaos:
    folder = project(tmp_path / "project", TESTS)
    (folder / "conftest.py").write_text(CONFTEST)
    return Chaos(here.path, folder, until)


def test_a_pytest_killed_at_any_step_of_a_guest_leaves_nothing(chaos: Chaos) -> None:
    for step in STEPS:
        cut = Cut(str(chaos.folder / "steps"), step)
        with chaos.running(cut=cut) as process:
            text, _ = process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL, (step, text)
    chaos.check()


@pytest.mark.parametrize("step", ["start sh shepherd.sh", "qmp cont"])
def test_a_killed_worker_leaves_nothing_and_blocks_nobody(
    chaos: Chaos, step: str
) -> None:
    cut = Cut(str(chaos.folder / "steps"), step)
    # With room for one guest the other worker waits for it.
    env = {"VICTIM": "gw0", "QEMUCTL_BUDGET_CPUS": "1"}
    with chaos.running("-n", "2", cut=cut, **env):
        chaos.until(lambda: step in begun(cut), 60.0)
        victim = int((chaos.folder / "victim").read_text())
        chaos.until(lambda: not owned_by(victim), GONE_WITHIN)
        chaos.until(lambda: guests(chaos.home), 60.0)  # of who waited
    chaos.check()


def test_a_killed_controller_takes_the_guests_of_its_workers_along(
    chaos: Chaos,
) -> None:
    with chaos.running("-n", "2", QEMUCTL_BUDGET_CPUS="2"):
        chaos.until(lambda: len(guests(chaos.home)) == 2, 60.0)
    with chaos.running("-n", "2", QEMUCTL_BUDGET_CPUS="1"):
        chaos.until(lambda: len(guests(chaos.home)) == 1, 60.0)
    chaos.check()


def begun(cut: Cut) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return cut.names()
    return []
