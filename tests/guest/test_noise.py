"""A guest that writes to its console without end, and what waits for it."""

from __future__ import annotations

import fcntl
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from tests.conftest import wait_until
from tests.guest.conftest import Home

# A guest of one sector: `mov dx, 0x3f8`, then for ever `mov al, c; out dx, al` for
# each character of "yes, yes\r\n".
_LINE = b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in b"yes, yes\r\n")
_BACK = b"\xeb" + bytes([256 - len(_LINE) - 2])
NOISE = (b"\xba\xf8\x03" + _LINE + _BACK).ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture(scope="module")
def noisy(shared: Home, tmp_path_factory: pytest.TempPathFactory) -> str:
    disk = tmp_path_factory.mktemp("noise") / "noise.raw"
    disk.write_bytes(NOISE.ljust(1 << 20, b"\0"))
    shared.run(
        "create", "noisy", "--disk", f"path={disk}", "--memory", "64M", "--nic", "none"
    )
    shared.run("start", "noisy", "--paused")
    return "noisy"


@pytest.fixture(autouse=True)
def runs(shared: Home, noisy: str) -> Iterator[None]:
    """It writes only while a test needs it."""
    shared.run("resume", noisy)
    shared.run("wait", noisy, "--for", "serial:^yes, yes$", "--timeout", "60")
    yield
    shared.run("pause", noisy)


def test_waiting_for_its_console_ends_at_the_time_out(shared: Home, noisy: str) -> None:
    waits = "wait", noisy, "--for", "serial:^no$", "--timeout", "500ms"
    words = shared.words(*waits, check=None, timeout=60)
    assert "timed out" in words
    assert "yes, yes" in words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_for_its_console_ends_at_a_signal(
    shared: Home, noisy: str, number: signal.Signals
) -> None:
    words = ("wait", noisy, "--for", "serial:never", "--timeout", "10m")
    waiting = shared.popen(*words, stderr=subprocess.DEVNULL)
    log = str(shared.path / "state/vms/noisy/serial.log")
    files = psutil.Process(waiting.pid).open_files
    wait_until(lambda: log in [file.path for file in files()])
    waiting.send_signal(number)
    assert waiting.wait(timeout=60) == 128 + number


def test_its_log_is_printed_and_not_followed(shared: Home, noisy: str) -> None:
    lines = shared.text("logs", noisy, timeout=60).splitlines()
    assert set(lines[-100:-1]) == {"yes, yes"}


def test_its_logs_have_a_bound_and_readers_keep_their_place(
    shared: Home, noisy: str
) -> None:
    """The shepherd sees to it, though nothing of Python lives. (What the guest would
    write in half a minute is written here.)"""
    vm = shared.path / "state/vms/noisy"
    with (vm / "serial.log").open("ab") as log:
        log.write(b"a long story\r\n" * 2_000_000)
    with (vm / "qemu.log").open("ab") as log:
        log.write(b"a warning\n" * 1_000_000)
    follows = "wait", noisy, "--for", "serial:^after$", "--timeout", "2m"
    with shared.popen(*follows, stderr=subprocess.DEVNULL) as waiting:
        for name in ("serial.log", "qemu.log"):
            wait_until(lambda f=vm / name: f.stat().st_blocks * 512 < 6 << 20)
        with (vm / "serial.log").open("ab") as log:
            log.write(b"\r\nafter\r\n")
        assert waiting.wait(timeout=60) == 0
    # The guest goes on behind it, and nobody sees what is gone.
    text = shared.run("logs", noisy, "--raw").stdout
    assert 2 << 20 < len(text) < 16 << 20
    assert b"\0" not in text
    assert text.rstrip(b"\r\n,yes ").endswith(b"after")
    shared.run("wait", noisy, "--for", "serial:yes, yes", "--timeout", "60")
    assert b"\0" not in shared.run("logs", noisy, "--qemu", "--raw").stdout


def test_a_command_that_waits_for_a_lock_says_so_and_ends_at_a_signal(
    shared: Home,
) -> None:
    """Whoever has the lock was stopped in the middle."""
    images = shared.path / "data/images"
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (images / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = ("create", "late", "--image", "tiny")
        with shared.popen(*words, stderr=subprocess.PIPE) as creating:
            assert creating.stderr is not None
            assert str(images).encode() in creating.stderr.readline()
            creating.send_signal(signal.SIGINT)
            assert creating.wait(timeout=20) in (130, -signal.SIGINT)
    assert "late" not in shared.text("ls", "-q")
