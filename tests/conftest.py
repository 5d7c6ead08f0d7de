"""Fixtures of every kind of test: a home of one's own, commands, and waiting."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qemuctl import paths
from qemuctl.cli import output
from tests import commands, hostile  # noqa: F401 (the profile of scripts/fuzz)
from tests.unproven import (  # noqa: F401 (hooks)
    pytest_report_teststatus,
    pytest_terminal_summary,
)

# The user's own cache, before any test moves the home.
CACHE = paths.cache_home()
# Killing takes a moment; what still lives after that many seconds was left behind.
GRACE = 30.0

# What a shell's `&`, nohup(1) and some CI systems ignore on our behalf; whatever the
# tests start has them as a terminal's user does.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A command server of the user's own is none of the tests' business.
os.environ["QEMUCTL_SERVER"] = "no"

# The files that take longest, which begin first: at the end no worker waits for one.
LONGEST = (
    "test_debian.py", "test_migrate_killed.py", "test_migrate_ssh.py",
    "test_plugin_killed.py", "test_save_killed.py",
    "test_migrate.py", "test_forks.py", "test_machines.py", "test_pytest_plugin.py",
    "test_pool.py", "test_owner_killed.py", "test_save.py", "test_cpus.py",
)  # fmt: skip
OTHERS = ("chaos", "guest", "fake", "unit", "golden")

Cli = Callable[..., subprocess.CompletedProcess[bytes]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, int]:
    """When a test's file begins; the tests of a file stay in their order."""
    name, folder = item.path.name, item.path.parent.name
    turn = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return turn, OTHERS.index(folder) if folder in OTHERS else -1


def wait_until(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """The first true value of ``condition``, for what has no event to wait for."""
    begun = asked = time.monotonic()
    while not (value := condition()):
        now = time.monotonic()
        assert now < begun + timeout, f"not in {timeout:g} s: {condition}"
        # What is dear to ask is asked less often: others need the processor.
        time.sleep(max(0.01, 3 * (now - asked)))
        asked = time.monotonic()
    return value


@pytest.fixture
def until() -> Callable[..., Any]:
    """`until(condition, timeout=60)`: asks until it is true, or fails."""
    return wait_until


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home of this test alone."""
    path = tmp_path / "home"
    monkeypatch.setenv("QEMUCTL_HOME", str(path))
    yield path
    monkeypatch.setenv("QEMUCTL_HOME", str(path))  # a test may move the home again
    shutil.rmtree(paths.run_home(), ignore_errors=True)


@pytest.fixture
def home(bare_home: Path) -> Iterator[Path]:
    """A home of this test alone with the user's cache; fails the test when a
    process of it outlives the test."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    bare_home.mkdir(mode=0o700)
    (bare_home / "cache").symlink_to(CACHE)
    yield bare_home
    sweep(bare_home)


@pytest.fixture(autouse=True)
def _no_json_yet() -> None:
    """A command in this process may switch to JSON on stderr for the rest of it."""
    output._as_objects = False


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the session when a process of one of its homes outlives it; run folders,
    which are not below the homes, go with it."""
    runtime = tempfile.mkdtemp(prefix="run-", dir="/tmp")  # short: it holds sockets
    os.environ["XDG_RUNTIME_DIR"] = runtime
    try:
        yield
        sweep(tmp_path_factory.getbasetemp())
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Ends what still runs with this home, or one below; fails if there is any."""
    if not survivors(folder):
        return
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not survivors(folder), GRACE)
    left = survivors(folder)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, GRACE)
    assert not left, f"left running: {[p.info for p in left]}"


def survivors(home: Path) -> list[psutil.Process]:
    """The processes that were started with this home, or one below: QEMU and its
    keepers; each has ``info`` with its pid, ppid and cmdline."""
    found = []
    for pid in psutil.pids():
        if pid == os.getpid() or not _of(pid, home):
            continue
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            process.info = process.as_dict(["pid", "ppid", "cmdline"])
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _of(pid: int, home: Path) -> bool:
    """Whether a process was started with this home: read here, for psutil takes three
    times as long, and this is asked at the end of each test."""
    name = b"QEMUCTL_HOME=" + os.fsencode(home)
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return name in words and any(
        word == name or word.startswith(name + b"/") for word in words.split(b"\0")
    )


@pytest.fixture
def cli(home: Path) -> Cli:
    """`cli(*arguments, input=None, timeout=120, env=None)`: the command line, as
    its user has it, in `home`."""

    def run(
        *arguments: str | Path,
        input: bytes | None = None,
        timeout: float = 120.0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        return commands.server().run(
            *arguments, input=input, timeout=timeout, env=os.environ | (env or {})
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
