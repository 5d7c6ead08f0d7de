"""Fixtures of every kind of test: a home of one's own, and waiting."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qemuctl import paths
from tests.unproven import (  # noqa: F401 (hooks)
    pytest_report_teststatus,
    pytest_terminal_summary,
)

# The user's own cache, before any test moves the home.
CACHE = paths.cache_home()
# Killing takes a moment; what still lives after that many seconds was left behind.
GRACE = 3.0

Cli = Callable[..., subprocess.CompletedProcess[bytes]]


def wait_until(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """The first true value of ``condition``, for what has no event to wait for."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {timeout:g} s: {condition}"
        time.sleep(0.01)
    return value


@pytest.fixture
def until() -> Callable[..., Any]:
    """`until(condition, timeout=10)`: asks until it is true, or fails."""
    return wait_until


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home of this test alone."""
    path = tmp_path / "home"
    monkeypatch.setenv("QEMUCTL_HOME", str(path))
    run = paths.run_home()  # a test may move the home again
    yield path
    shutil.rmtree(run, ignore_errors=True)


@pytest.fixture
def home(bare_home: Path) -> Iterator[Path]:
    """A home of this test alone with the user's cache; fails the test when a
    process of it outlives the test."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    bare_home.mkdir(mode=0o700)
    (bare_home / "cache").symlink_to(CACHE)
    yield bare_home
    left = survivors(bare_home)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not survivors(bare_home), GRACE)
    late = survivors(bare_home)
    for process in late:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert not late, f"left running: {[p.info for p in left]}"


def survivors(home: Path) -> list[psutil.Process]:
    """The processes that were started with this home, QEMU and its keepers."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.environ().get("QEMUCTL_HOME") == str(home)
                and process.status() != psutil.STATUS_ZOMBIE
                and process.pid != os.getpid()
            ):
                found.append(process)
    return found


@pytest.fixture
def cli(home: Path) -> Cli:
    """`cli(*arguments, input=None, timeout=60, env=None)`: the command line, as
    its user has it, in `home`."""

    def run(
        *arguments: str | Path,
        input: bytes | None = None,
        timeout: float = 60.0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        argv = [sys.executable, "-m", "qemuctl", *map(str, arguments)]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL}
        if input is not None:
            streams = {"input": input}
        return subprocess.run(
            argv,
            capture_output=True,
            timeout=timeout,
            env=os.environ | (env or {}),
            check=False,
            **streams,
        )

    return run


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[Any]]]:
    """Processes that the test starts; each is ended and reaped after it."""
    started: list[subprocess.Popen[Any]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()
