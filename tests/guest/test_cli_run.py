"""`run`: a throwaway guest, and nothing of it afterwards."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from qemuctl import paths
from tests.conftest import survivors
from tests.guest.conftest import Home

# The folder is /root, or ~ with a newer busybox.
PROMPT = r"root@[^ ]+# "


@pytest.fixture
def clean(here: Home) -> Home:
    """A home that is as empty after the test as it was before."""
    return here


def left_over(home: Home) -> list[str]:
    """Everything that a throwaway VM might have left."""
    vms = home.path / "state" / "vms"
    found = [str(path) for path in vms.glob("*")]
    found += [str(path) for path in paths.run_home().glob("*")]
    return found + [str(p) for p in survivors(home.path)]


def test_output_input_and_status_pass_through(here: Home) -> None:
    done = here.run(
        "run", "tiny", "--disk", "size=32M", "--cpus", "2", "--memory", "300M", "--",
        "sh", "-c", "cat; nproc; cat /sys/block/vda/size; echo err >&2; exit 9",
        input=b"data\0\xff\n", check=9,
    )  # fmt: skip
    assert done.stdout == b"data\0\xff\n2\n65536\n"
    assert done.stderr.endswith(b"err\n")
    assert left_over(here) == []


def test_the_accelerator_is_told_once(here: Home, tmp_path: Path) -> None:
    # A cache of its own, in which nothing has been said yet.
    env = {"QEMUCTL_HOME": str(tmp_path / "told")}
    (tmp_path / "told").mkdir()
    sector = ["run", "--accel", "auto", "--timeout", "1", "-f"]
    spec = tmp_path / "quick.yaml"
    spec.write_text("name: quick\ncdrom: ''\nnics: []\nserial: true\nagent: true\n")
    for expected in (1, 0):
        done = subprocess.run(
            here.command(*sector, spec, "true"),
            env=here.env | env, capture_output=True, check=False, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.stderr.count(b"note: ") == expected


def test_a_guest_that_never_answers_is_told_by_stage_and_console(
    here: Home, boot_sector: Path
) -> None:
    words = here.words("run", boot_sector, "--timeout", "2", "--", "true", check=1)
    assert "timed out after 2 s: waiting for the guest agent to start" in words
    assert "ok" in words.split("the console's last lines:")[1]
    assert left_over(here) == []


def test_the_image_of_a_throwaway_is_not_written_to(
    here: Home, tmp_path: Path, boot_sector: Path
) -> None:
    before = boot_sector.read_bytes()
    here.run("run", boot_sector, "--timeout", "1", "--", "true", check=1)
    assert boot_sector.read_bytes() == before


def test_a_guest_panic_ends_it_at_once_with_the_console(here: Home) -> None:
    # Only the panic can end the command before its time is over.
    words = here.words(
        "run", "tiny", "--", "sh", "-c",
        "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 9999",
        check=1, timeout=115,
    )  # fmt: skip
    assert "guest panicked" in words
    assert "sysrq triggered crash" in words
    assert left_over(here) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_all_that_belongs_to_it(
    here: Home, number: signal.Signals, server: str
) -> None:
    here = here.by(server)
    process = here.popen(
        "run", "tiny", "--", "sh", "-c", "echo on; sleep 60",
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    process.stdout.close()
    assert left_over(here) == []


def test_the_console_is_a_terminal_and_its_escape_removes_the_vm(
    here: Home, server: str
) -> None:
    here = here.by(server)
    argv = here.command("run", "tiny")
    child = pexpect.spawn(argv[0], argv[1:], env=here.env, timeout=60, encoding="utf-8")
    try:
        child.expect("Ctrl-] leaves")
        child.expect(PROMPT)
        # Ctrl-C is the guest's: it ends the sleep there, and nothing here.
        child.send("sleep 600\r")
        child.expect("sleep 600\r\n")
        # Sent before the shell has begun it, a first one would be for the shell.
        for _ in range(20):
            child.send("\x03")
            if child.expect([PROMPT, pexpect.TIMEOUT], timeout=3) == 0:
                break
        child.send("echo $((40 + 2))\r")
        child.expect("\r\n42\r\n")
        child.send("\x1d")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 0
    assert left_over(here) == []


def test_a_console_without_a_terminal_runs_to_the_guests_end(
    here: Home, server: str
) -> None:
    here = here.by(server)
    process = here.popen("run", "tiny", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    seen = b""
    while not re.search(PROMPT.encode(), seen):
        seen += process.stdout.read1()
    process.stdin.write(b"echo $((40 + 2)); poweroff\n")
    process.stdin.close()
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == 0
    assert b"\n42\r\n" in rest
    assert left_over(here) == []


def test_many_at_once_do_not_collide(here: Home) -> None:
    code = """
import asyncio, qemuctl
async def one(number):
    spec = qemuctl.Spec(name="many", nics=({"forward": [":22"]},))
    async with qemuctl.launch(spec) as vm:
        return vm.record.forwards[0].split("->")[0], vm.pid
async def main():
    found = await asyncio.gather(*map(one, range(8)))
    assert len({port for port, _ in found}) == len({pid for _, pid in found}) == 8
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], env=here.env, check=True, timeout=120)
    assert left_over(here) == []


def test_a_console_without_any_input_is_left_at_once(here: Home) -> None:
    here.run("run", "tiny")
    assert left_over(here) == []


@pytest.mark.parametrize(
    "flags", [("--memory", "5X"), ("--cpus", "0"), ("-p", "abc"), ("--accel", "foo")]
)
def test_a_flag_that_makes_no_sense_is_wrong_usage(
    here: Home, flags: tuple[str, str]
) -> None:
    here.run("run", "tiny", *flags, "--", "true", check=2)
