"""A save, or a start from one, that is cut short: the guest goes on all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.conftest import Home
from tests.guest.saves import cut, row, saved
from tests.unproven import in_small_mounts


@pytest.mark.parametrize("options", [[], ["--compress"]])
@pytest.mark.parametrize(
    ("at", "late"), [("query-cpus-fast", 0), ("migrate", 0), ("migrate", 0.03)]
)
def test_ctrl_c_has_the_guest_go_on(
    shared: Home, counting: str, goes_on: None, at: str, late: float, options: list[str]
) -> None:
    status, words = cut(shared, "ctrl-c", at, "save", "web", *options, late=late)
    assert (status, words) == (130, "")
    assert row(shared, "web")["state"] == "running"
    assert not saved(shared).exists()


def test_a_qemu_that_was_stopped_goes_on_after_ctrl_c(
    shared: Home, counting: str, goes_on: None
) -> None:
    pid = row(shared, "web")["pid"]
    # Goes on by itself when the command has been waiting for a while.
    stopped = f"until grep -q 'State:.T' /proc/{pid}/status; do sleep 0.05; done"
    later = subprocess.Popen(["sh", "-c", f"{stopped}; sleep 2; kill -CONT {pid}"])
    status, _ = cut(shared, "stopped", "migrate", "save", "web")
    later.wait()
    assert status == 130
    assert row(shared, "web")["state"] == "running"


@pytest.mark.parametrize("at", ["query-migrate-capabilities", "migrate-incoming"])
def test_ctrl_c_leaves_what_was_saved(
    shared: Home, counting: str, goes_on: None, at: str
) -> None:
    shared.run("save", "web")
    status, _ = cut(shared, "ctrl-c", at, "start", "web")
    assert status == 130
    assert row(shared, "web")["state"] == "off"
    assert row(shared, "web")["saved"]


def test_a_guest_that_has_begun_to_go_on_does_so(
    shared: Home, counting: str, goes_on: None
) -> None:
    shared.run("save", "web")
    status, _ = cut(shared, "ctrl-c", "cont", "start", "web")
    assert status == 130
    assert row(shared, "web")["state"] == "running"


def test_the_last_moment_of_a_killed_save_is_either_of_both(
    shared: Home, counting: str, goes_on: None
) -> None:
    assert cut(shared, "killed", "quit", "save", "web")[0] == 9
    assert row(shared, "web")["state"] == "paused"
    assert "it is saved" in shared.words("save", "web", check=1)
    shared.run("resume", "web")
    assert not saved(shared).exists()
    assert cut(shared, "killed", "quit", "save", "web")[0] == 9
    shared.run("kill", "web")
    assert row(shared, "web")["saved"]
    shared.run("start", "web")


def test_resume_ends_what_a_killed_save_has_begun(
    shared: Home, counting: str, goes_on: None
) -> None:
    assert cut(shared, "killed", "migrate", "save", "web", late=0.03)[0] == 9
    assert row(shared, "web")["state"] == "paused"
    shared.run("resume", "web")
    assert row(shared, "web")["state"] == "running"
    shared.run("save", "web")


def test_nobody_resumes_a_guest_that_is_being_saved(
    shared: Home, counting: str, goes_on: None
) -> None:
    pid = row(shared, "web")["pid"]
    slow = (
        "import asyncio, sys\n"
        "from qemuctl.savestate import save\n"
        "async def end(vm):\n"
        "    print('named', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "    await real(vm)\n"
        "real, save._end = save._end, end\n"
        "sys.argv = ['qemuctl', 'save', 'web']\n"
        "from qemuctl.cli.main import main\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow], env=shared.env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"named\n"
        assert row(shared, "web")["pid"] == pid
        assert "it is being saved" in shared.words("resume", "web", check=1)
        process.communicate()
    assert row(shared, "web")["saved"]


def test_of_two_starts_at_once_one_goes_on(
    shared: Home, counting: str, goes_on: None
) -> None:
    shared.run("save", "web")
    both = [shared.popen("start", "web", stderr=subprocess.PIPE) for _ in range(2)]
    words = [process.communicate()[1].decode() for process in both]
    assert sum("goes on from where it was saved" in each for each in words) == 1, words
    assert min(process.returncode for process in both) == 0
    assert row(shared, "web")["state"] == "running"


@pytest.mark.parametrize("options", ["", "--compress"])
def test_a_full_disk_has_the_guest_go_on(
    shared: Home, counting: str, goes_on: None, tmp_path: Path, options: str
) -> None:
    script = f"""mount -t tmpfs -o size=4m tmpfs {tmp_path} && \
"{sys.executable}" -m qemuctl save web {tmp_path}/web.state {options}; status=$?
ls -A {tmp_path}; exit $status"""
    done = subprocess.run(
        [*in_small_mounts("a full disk"), "sh", "-c", script], env=shared.env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert f"no room left to write web.state: {tmp_path}" in done.stderr
    assert row(shared, "web")["state"] == "running"
