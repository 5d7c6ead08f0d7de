"""SIGKILL of an owner at any moment: nothing of its VM is left."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from qemuctl import paths
from tests.conftest import survivors
from tests.guest.conftest import Home, qemu  # noqa: F401 (a fixture)

pytestmark = pytest.mark.timeout(240)

ROUNDS = 20
# `run` of the tiny guest is done with starting after a second or so, and with
# booting after some more; the moments fall into all of it.
LATEST = 4.0
GONE_WITHIN = 2.0


def vms(home: Path) -> list[Path]:
    return list((home / "state" / "vms").glob("*"))


def test_a_killed_owner_leaves_no_process_no_socket_no_overlay(
    home: Path,
    qemu: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    image = tmp_path / "base.raw"
    image.write_bytes(bytes(1024 * 1024))
    here = Home(home)
    moments = random.Random(20)
    met = {"nothing yet": 0, "files": 0, "QEMU": 0}
    for number in range(ROUNDS):
        what = ["tiny", "--disk", "size=8M"] if number % 2 else [str(image)]
        owner = here.popen("run", *what, "--", "sleep", "60", stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.1, 1.0 if number % 4 else LATEST))
        running = [p for p in survivors(home) if p.name().startswith("qemu")]
        met["QEMU" if running else "files" if vms(home) else "nothing yet"] += 1
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + GONE_WITHIN
        while survivors(home):
            assert time.monotonic() < deadline, survivors(home)
            time.sleep(0.01)
        assert vms(home) == []
        assert not list(paths.run_home().glob("*/*"))
    assert met["QEMU"] >= 3, met


def test_a_start_whose_command_is_killed_is_whole_or_nothing(
    home: Path,
    qemu: Path,  # noqa: F811
) -> None:
    here = Home(home)
    here.run("create", "web", "--memory", "32M", "--disk", "size=8M")
    moments = random.Random(10)
    seen = set()
    # The first one is before anything has begun, on however quick a machine.
    for moment in [0.02, *(moments.uniform(0.1, 0.7) for _ in range(10))]:
        command = here.popen("start", "web", stderr=subprocess.DEVNULL)
        time.sleep(moment)
        command.kill()
        command.wait()
        deadline = time.monotonic() + GONE_WITHIN
        while (state := _state(here)) in ("starting", "stopping"):
            assert time.monotonic() < deadline, state
        assert state in ("off", "running")
        seen.add(state)
        if state != "off":
            here.run("kill", "web")
        # Whatever it was, the next start works.
        here.run("start", "web")
        here.run("kill", "web")
    assert "off" in seen


def _state(here: Home) -> str:
    return str(json.loads(here.text("ls", "-a", "--json"))[0]["state"])
