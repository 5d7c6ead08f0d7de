"""SIGKILL of an owner at each of its steps: nothing of its VM is left."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuctl import paths
from tests.conftest import survivors
from tests.guest.conftest import Home
from tests.steps import Cut

Until = Callable[..., object]
GONE_WITHIN = 20.0


def nothing(home: Home) -> bool:
    """Whether no process, file or socket of a throwaway VM is there."""
    vms = (home.path / "state" / "vms").glob("*")
    sockets = paths.run_home().glob("*/*")
    return not survivors(home.path) and not [*vms, *sockets]


@pytest.mark.parametrize("image", ["disk", "tiny"])
def test_a_killed_owner_leaves_no_process_no_socket_no_overlay(
    here: Home, tmp_path: Path, until: Until, image: str
) -> None:
    disk = tmp_path / "base.raw"
    disk.write_bytes(bytes(1024 * 1024))
    # A disk that is none is waited for in vain, and briefly.
    what = [disk, "--timeout", "0.1"] if image == "disk" else ["tiny"]
    command = ["run", *what, "--disk", "size=8M", "--", "true"]
    whole = Cut(str(tmp_path / "steps"))
    status = here.run(*command, cut=whole, check=None).returncode
    assert status == (image == "disk")
    steps = whole.names()
    # Up to there both are the same.
    first = 0 if image == "disk" else steps.index("start sh shepherd.sh")
    assert "rename process.json" in steps
    for step in steps[first:]:
        done = here.run(*command, cut=Cut(whole.log, step), check=None)
        assert done.returncode in (-9, status), step  # some come now and then
        until(lambda: nothing(here), GONE_WITHIN)


def test_an_owner_killed_while_its_guest_works_leaves_nothing(
    here: Home, until: Until, server: str
) -> None:
    here = here.by(server)
    owner = here.popen(
        "run", "tiny", "--disk", "size=8M", "--", "sh", "-c", "echo on; sleep 600",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"on\n"
    owner.kill()
    owner.communicate()
    until(lambda: nothing(here), GONE_WITHIN)


def test_a_start_whose_command_is_killed_is_whole_or_nothing(
    here: Home, tmp_path: Path, until: Until
) -> None:
    here.run("create", "web", "--memory", "32M", "--disk", "size=8M")
    whole = Cut(str(tmp_path / "steps"))
    here.run("start", "web", cut=whole)
    here.run("kill", "web")
    seen = set()
    for step in whole.names():
        # Whatever the one before left, this start comes as far as its step.
        done = here.run("start", "web", cut=Cut(whole.log, step), check=None)
        assert done.returncode in (-9, 0), step
        until(lambda: _state(here) not in ("starting", "stopping"), GONE_WITHIN)
        state = _state(here)
        assert state in ("off", "running"), step
        seen.add(state)
        if state != "off":
            here.run("kill", "web")
    assert seen == {"off", "running"}
    here.run("start", "web")
    here.run("kill", "web")


def _state(here: Home) -> str:
    return str(json.loads(here.text("ls", "-a", "--json"))[0]["state"])
