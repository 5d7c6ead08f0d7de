"""Templates whose files, making or host go wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import TemplateError, WaitTimeout
from qemuctl.templates import catalog, identity
from qemuctl.templates.fork import create_fork, park, unpark
from tests.guest.conftest import Home
from tests.guest.templates import cached, facts, own_cache, throwaways
from tests.unproven import in_small_mounts

CREATE = ("template", "create", "t", "--image", "tiny", "--memory", "200M")


@pytest.fixture(scope="module")
def made(shared: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template's folder, made by a QEMU that can be exchanged."""
    binary = shutil.which("qemu-system-x86_64")
    wrapper = tmp_path_factory.mktemp("bin") / "qemu"
    wrapper.write_text(f'#!/bin/sh\nexec {binary} "$@"\n')
    wrapper.chmod(0o755)
    spec = wrapper.with_name("t.yaml")
    spec.write_text(
        f"name: t\nimage: tiny\nmemory: 200M\nqemu: {wrapper}\ndisks: [size: 32M]\n"
    )
    shared.run("template", "create", "t", "-f", spec, timeout=150)
    return shared.path / "data/templates/t"


@pytest.fixture
def here_too(shared: Home, made: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home of the template, for the library, too."""
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    return shared


async def test_a_template_that_went_meanwhile_makes_no_fork_of_new_files(
    here_too: Home, made: Path
) -> None:
    template = catalog.find("t")
    gone = replace(template, making="00000000")
    for starting in (park(gone), create_fork(gone, "never")):
        with pytest.raises(TemplateError, match="its file is missing"):
            await starting
    assert not gone.content.exists()
    assert throwaways(here_too) == []
    assert "never" not in here_too.text("ls", "-a")


def test_a_damaged_one_is_made_again_and_says_why(shared: Home, made: Path) -> None:
    """What a killed maker left goes, and what a VM's disk stands on stays."""
    shared.run("fork", "t", "--name", "old")
    shared.run("kill", "old")
    (made / "deadbeef").mkdir()
    (made / "deadbeef/ram").write_bytes(bytes(1 << 20))
    before = Path(facts(shared, "t")["folder"])
    os.truncate(before / "ram", 4096)
    assert "has another size" in shared.text("template", "ls")
    assert "is damaged" in shared.words("template", "verify", "t", check=1)
    done = shared.run("fork", "t", "--", "echo", "works", timeout=150)
    assert done.stdout == b"works\n"
    assert b"making the template t again: its file has another size" in done.stderr
    after = Path(facts(shared, "t")["folder"])
    assert after != before
    folders = {path for path in made.iterdir() if path.is_dir()}
    assert folders == {before, after}
    shared.run("start", "old", "--wait", timeout=150)
    shared.run("rm", "--force", "old")


def test_another_qemu_makes_it_again_and_says_so(shared: Home, made: Path) -> None:
    wrapper = Path(facts(shared, "t")["qemu"])
    os.utime(wrapper, (1, 1))
    done = shared.run("fork", "t", "--", "echo", "works", timeout=150)
    assert b"what it was made from has changed: QEMU, or an image" in done.stderr
    assert [path.name for path in made.iterdir() if path.is_dir()] == [
        Path(facts(shared, "t")["folder"]).name
    ]
    again = shared.run("fork", "t", "--", "echo", "works")
    assert b"again" not in again.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--run", "echo no >&2; exit 3"),
            "(status 3): echo no >&2; exit 3\n\nhint: no",
        ),
        (("--run", "poweroff -f; sleep 60"), "ended: "),
        (("--run", "sleep 600", "--timeout", "20"), "waiting for the end of 'sleep"),
    ],
)
def test_a_guest_that_does_not_get_ready_leaves_nothing(
    here: Home, flags: tuple[str, ...], words: str
) -> None:
    said = here.words(*CREATE, *flags, check=1, timeout=150)
    assert words in said
    assert here.text("template", "ls", "--json") == "[]\n"
    assert not list((here.path / "data/templates").glob("*"))
    assert throwaways(here) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_is_made_leaves_nothing(
    here: Home, number: signal.Signals, until: Callable[..., Any]
) -> None:
    maker = here.popen(*CREATE, stderr=subprocess.DEVNULL)
    folder = here.path / "data/templates"
    until(lambda: list(folder.glob("t/*/ram")), 60)
    maker.send_signal(number)
    assert maker.wait(30) == 128 + number
    assert not list(folder.glob("*"))
    assert throwaways(here) == []


async def test_a_qemu_that_stands_still_is_given_up(
    here_too: Home, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WAKE_TIMEOUT", 1.0)
    template = catalog.find("t")
    attached = await park(template)
    os.kill(attached.child.qemu.pid, signal.SIGSTOP)
    with pytest.raises(WaitTimeout, match="timed out after 1 s"):
        await unpark(attached, template)
    await attached.end()
    assert throwaways(here_too) == []


SMALL = """
set -e
mount -t tmpfs -o size=$2 tmpfs "$1"
mkdir "$1/templates"
shift 2
exec "$PYTHON" -m qemuctl "$@" </dev/null
"""
READ_ONLY = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
shift 2
exec "$PYTHON" -m qemuctl "$@" </dev/null
"""


def mounted(
    here: Home, script: str, where: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*in_small_mounts("a full disk"), "sh", "-c", script, "sh", where, *words],
        env=here.env | {"PYTHON": sys.executable}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


RUN = ("run", "tiny", "--memory", "200M", "--", "echo", "works")


def test_without_room_it_is_booted_and_told(here: Home) -> None:
    mine = own_cache(here.path)
    (mine.path / "cache/templates").mkdir(mode=0o700)
    done = mounted(mine, SMALL, mine.path / "cache/templates", "64m", *RUN)
    assert (done.returncode, done.stdout) == (0, "works\n"), done.stderr
    assert "no fork can be had: too little room for the guest's memory" in done.stderr
    data = mine.path / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    done = mounted(mine, SMALL, data, "64m", *CREATE)
    assert done.returncode == 1
    assert "too little room for the guest's memory" in done.stderr
    assert throwaways(mine) == []


FILLED = """
import os, sys
from qemuctl.templates import make
make._check_space = lambda *_: None
from qemuctl.cli.main import main
main()
"""


def test_a_disk_that_gets_full_while_it_is_made_is_survived(here: Home) -> None:
    """The kernel kills a QEMU whose memory has no room (SIGBUS)."""
    mine = own_cache(here.path)
    (mine.path / "cache/templates").mkdir(mode=0o700)
    script = SMALL.replace("-m qemuctl", '-c "$FILLED"')
    mine_env = Home(mine.path)
    done = subprocess.run(
        [*in_small_mounts("a full disk"), "sh", "-c", script, "sh",
         mine.path / "cache/templates", "64m", *RUN],
        env=mine_env.env | {"PYTHON": sys.executable, "FILLED": FILLED},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "works\n"), done.stderr
    assert "no fork can be had: template-" in done.stderr
    assert throwaways(mine) == []


def test_a_cache_that_cannot_be_written_to_is_no_reason_to_fail(here: Home) -> None:
    mine = own_cache(here.path)
    done = mounted(mine, READ_ONLY, mine.path / "cache", "", *RUN)
    assert (done.returncode, done.stdout) == (0, "works\n"), done.stderr
    assert "no fork can be had: " in done.stderr
    assert throwaways(mine) == []


def test_a_guest_that_never_answers_is_waited_for_once(
    here: Home, boot_sector: Path
) -> None:
    mine = own_cache(here.path)
    words = mine.words("run", boot_sector, "--timeout", "2", "--", "true", check=1)
    assert "timed out after 2 s: waiting for the guest agent to start" in words
    assert "no fork" not in words
    assert cached(mine) == []
    assert throwaways(mine) == []
