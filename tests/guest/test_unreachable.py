"""A VM whose sockets, or whose process, cannot be seen by whoever asks for it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qemuctl.paths import made_run_home
from tests.guest.conftest import Home
from tests.unproven import in_small_mounts


@pytest.fixture
def web(here: Home, sector: Path) -> str:
    here.run(
        "create", "web", "--disk", f"path={sector},readonly=true", "--memory", "32M",
        "--nic", "none",
    )  # fmt: skip
    return "web"


def state(home: Home) -> object:
    return json.loads(home.text("ls", "--json"))[0]["state"]


def test_sockets_that_were_cleaned_away_are_said_to_be_unseen(
    here: Home, web: str
) -> None:
    here.run("start", web)
    sockets = Path(json.loads(here.text("info", web, "--json"))["sockets"])
    sockets.rename(sockets.with_name("kept"))
    assert state(here) == "unreachable"
    for command in (["console"], ["exec"], ["pause"], ["qmp"]):
        rest = ["--", "true"] if command == ["exec"] else []
        rest = ["query-status"] if command == ["qmp"] else rest
        words = here.words(*command, web, *rest, check=1)
        assert "cannot be seen from here" in words, command
        assert "qemuctl kill" not in words
    assert "cannot be seen" in here.text("info", web)
    sockets.with_name("kept").rename(sockets)
    assert state(here) == "running"
    (sockets / "serial.sock").unlink()
    assert "its socket is gone" in here.words("console", web, check=1)
    sockets.rename(sockets.with_name("kept"))
    words = here.words("stop", web)
    assert "ended by SIGTERM" in words
    assert "the guest of web was not asked" in words
    assert here.text("ls", "-q") == ""


def test_a_guest_whose_sockets_were_cleaned_away_is_asked_by_ssh(
    here: Home, web: str, tmp_path: Path
) -> None:
    """What answers at the forwarded port stands for an ssh server."""
    here.run("nic", "add", web, "user,forward=:22")
    here.run("start", web)
    facts = json.loads(here.text("info", web, "--json"))
    asked = tmp_path / "asked"
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\necho "$@" >"{asked}"\nkill -TERM {facts["pid"]}\n')
    ssh.chmod(0o755)
    sockets = Path(facts["sockets"])
    sockets.rename(sockets.with_name("kept"))
    path = f"{ssh.parent}:{here.env['PATH']}"
    done = subprocess.run(
        here.command("stop", web), env=here.env | {"PATH": path}, check=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert b"its guest shut down (ssh)" in done.stderr
    assert "poweroff" in asked.read_text()


def test_a_vm_with_a_tmp_of_its_own_is_reached_there(here: Home, web: str) -> None:
    enter = in_small_mounts("a private /tmp")
    # The home of a test may itself be below /tmp.
    script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    folder = made_run_home().parent
    subprocess.run(
        [*enter, "sh", "-c", script, "sh", folder, *here.command("start", web)],
        env=here.env, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert state(here) == "running"
    here.run("pause", web)
    assert state(here) == "paused"
    assert "ended by QMP quit" in here.words("stop", web, "--timeout", "0")


def test_a_vm_of_another_pid_namespace_is_seen_to_run_and_to_end(
    here: Home, web: str
) -> None:
    enter = in_small_mounts("other pid namespaces")
    space = [*enter, "--pid", "--fork", "--mount-proc"]

    def inside(*arguments: str) -> str:
        argv = [*space, *here.command(*arguments)]
        done = subprocess.run(
            argv, env=here.env, check=True, capture_output=True, timeout=60
        )
        return done.stdout.decode() + done.stderr.decode()

    here.run("start", web)
    assert json.loads(inside("ls", "--json"))[0]["state"] == "running"
    assert "ended by QMP quit" in inside("stop", web, "--timeout", "0")
    assert here.text("ls", "-q") == ""
