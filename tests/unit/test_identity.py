"""A process is known by pid, start time and boot, never by its pid alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl.process import Identity, wait_gone

Processes = list[subprocess.Popen[Any]]


@pytest.fixture
def sleeper(processes: Processes) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "60"])
    processes.append(process)
    return process


def identity(pid: int) -> Identity:
    found = Identity.of(pid)
    assert found is not None
    return found


def test_a_living_process_has_one_identity(sleeper: subprocess.Popen[bytes]) -> None:
    found = identity(sleeper.pid)
    assert found == identity(sleeper.pid)
    assert found != identity(os.getpid())
    assert found.alive()


def test_the_identity_is_pid_start_time_and_boot(
    sleeper: subprocess.Popen[bytes],
) -> None:
    found = identity(sleeper.pid)
    started = Path(f"/proc/{sleeper.pid}/stat").read_text().split()[21]
    assert (found.pid, found.start_ticks) == (sleeper.pid, int(started))
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_name_with_brackets_and_spaces_does_not_confuse_it(
    tmp_path: Path, processes: Processes
) -> None:
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([odd, "60"])
    processes.append(process)
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    assert "(a) Z 1 (b)" in stat
    assert identity(process.pid).start_ticks == int(stat.rpartition(")")[2].split()[19])


def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes], until: Any) -> None:
    found = identity(sleeper.pid)
    sleeper.kill()
    stat = Path(f"/proc/{sleeper.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
    assert not found.alive()
    assert Identity.of(sleeper.pid) is None
    assert found.open() is None
    assert not found.signal(signal.SIGTERM)


def test_a_reaped_process_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    found = identity(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not found.alive()
    assert Identity.of(sleeper.pid) is None
    assert found.open() is None
    assert not found.signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "changed",
    [
        lambda real: replace(real, start_ticks=real.start_ticks - 1),
        lambda real: replace(real, boot_id="another boot"),
    ],
    ids=["start time", "boot"],
)
def test_whoever_got_a_recycled_pid_is_somebody_else(
    sleeper: subprocess.Popen[bytes], changed: Callable[[Identity], Identity]
) -> None:
    former = changed(identity(sleeper.pid))
    assert not former.alive()
    assert former.open() is None


def test_a_signal_never_reaches_another_process(
    sleeper: subprocess.Popen[bytes],
) -> None:
    real = identity(sleeper.pid)
    assert not replace(real, start_ticks=real.start_ticks - 1).signal(signal.SIGKILL)
    # Had KILL been sent, it would come before TERM.
    assert real.signal(signal.SIGTERM)
    assert sleeper.wait(timeout=60) == -signal.SIGTERM


def test_a_pid_that_a_thread_has_now_is_gone() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        former = replace(identity(os.getpid()), pid=thread.native_id, start_ticks=1)
        assert not former.alive()
        assert former.open() is None
        assert not former.signal(signal.SIGKILL)
    finally:
        release.set()
        thread.join()


async def test_a_process_that_was_never_seen_is_gone() -> None:
    nobody = Identity(0, -1, "")
    assert not nobody.alive()
    await wait_gone(nobody)


async def test_wait_gone_ends_with_the_process_though_it_is_no_child(
    processes: Processes, until: Any
) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '60'], stdout=-3)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(p.pid, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    processes.append(parent)
    assert parent.stdout is not None
    grandchild = identity(int(parent.stdout.readline()))
    assert grandchild.signal(signal.SIGKILL)
    await wait_gone(grandchild)
    assert not grandchild.alive()


async def test_wait_gone_does_not_wait_for_another_of_that_pid(
    sleeper: subprocess.Popen[bytes],
) -> None:
    await wait_gone(replace(identity(sleeper.pid), start_ticks=1))
    assert sleeper.poll() is None
