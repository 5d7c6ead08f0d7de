"""`console` and `logs` on a guest that stays."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pexpect
import pytest

from tests.guest.conftest import Home
from tests.guest.moving import state


@pytest.fixture
def web(shared: Home, web: str) -> str:
    """The guest, running: another test may have stopped it."""
    if state(shared, web) == "off":
        shared.run("start", web, "--wait", timeout=150)
    return web


def spawn(home: Home, *arguments: str) -> pexpect.spawn[str]:
    argv = home.command(*arguments)
    return pexpect.spawn(argv[0], argv[1:], env=home.env, timeout=60, encoding="utf-8")


def test_the_console_is_one_terminals_at_a_time_and_the_vm_goes_on(
    shared: Home, web: str, server: str
) -> None:
    shared = shared.by(server)
    first = spawn(shared, "console", web)
    try:
        first.expect("Ctrl-] leaves")
        first.send("\r")
        first.expect("# ")
        first.send("echo $((40 + 2))\r")
        first.expect("\r\n42\r\n")
        assert "another terminal" in shared.words("console", web, check=1)
        # Everybody else goes on meanwhile.
        assert shared.text("exec", web, "--", "echo", "hello") == "hello\n"
        first.send("\x1d")
        first.expect(pexpect.EOF)
    finally:
        first.close()
    assert first.exitstatus == 0
    assert json.loads(shared.text("info", web, "--json"))["state"] == "running"
    assert "42" in shared.text("logs", web)
    again = spawn(shared, "console", web)
    again.expect("Ctrl-] leaves")
    again.send("\x1d")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 0


def test_a_followed_log_ends_with_the_vm(shared: Home, web: str) -> None:
    following = shared.popen("logs", web, "-f", stdout=subprocess.PIPE)
    events = shared.popen("logs", web, "--qmp", "-f", stdout=subprocess.PIPE)
    console = spawn(shared, "console", web)
    console.expect("Ctrl-] leaves")
    said = (
        "i=0; while [ $((i += 1)) -lt 99 ]; do printf '\\033[32mgrün\\033[0m %s\\n' $i"
    )
    shared.run("exec", web, "--", "sh", "-c", f"({said}; done) >/dev/ttyS0")
    shared.run("stop", web)
    console.expect(f"{web} ended: stopped by the guest")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    text, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    assert b"Power down" in text or b"going down" in text
    assert text == shared.run("logs", web).stdout
    assert "\ngrün 97\ngrün 98\n" in text.decode()
    lines = [
        json.loads(line) for line in events.communicate(timeout=60)[0].splitlines()
    ]
    assert events.returncode == 0
    assert "SHUTDOWN" in {line.get("event") for line in lines}
    assert shared.run("logs", web, "--qemu").stdout == b""


def test_leaving_the_console_of_firmware_leaves_a_terminal_to_work_with(
    here: Home, sector: Path
) -> None:
    here.run("create", "a", "--disk", f"path={sector}", "--memory", "64M")
    here.run("start", "a", "--paused")
    here.words("console", "a", "--escape", "tab", check=2)
    console = spawn(here, "console", "a", "--escape", "^t")
    console.expect("Ctrl-T leaves")
    here.run("resume", "a")
    console.expect_exact("\x1b[?7l")  # SeaBIOS turns line wrap off
    console.expect("ok")
    console.send("\x1d")  # not the key that leaves here
    console.send("\x14")
    console.expect(pexpect.EOF)
    assert console.before is not None
    for mode in ("\x1b[0m", "\x1b[?7h", "\x1b[?25h"):
        assert mode in console.before
    console.close()
    assert console.exitstatus == 0
    here.run("kill", "a")


def test_doctor_names_what_it_checked(shared: Home) -> None:
    checks = json.loads(shared.text("doctor", "--json"))
    assert all(check["status"] in ("ok", "warn", "fail") for check in checks)
    assert all(check["advice"] for check in checks if check["status"] != "ok")
    plain = shared.text("doctor")
    assert all(check["name"] in plain for check in checks)
