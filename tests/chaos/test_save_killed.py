"""SIGKILL at any moment of a save or a start: the guest is there, or the whole file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import survivors
from tests.guest.conftest import Home, qemu  # noqa: F401 (a fixture)
from tests.guest.disks import device, inside
from tests.guest.saves import begun, row
from tests.guest.test_snapshots import COUNTER, count

pytestmark = pytest.mark.timeout(900)

ROUNDS = 5
# A save, or a start from what was saved, takes half a second and more.
LATEST = 1.2
GONE_WITHIN = 3.0


@pytest.fixture
def guest(home: Path, qemu: Path) -> Home:  # noqa: F811
    here = Home(home)
    here.run(
        "create", "web", "--image", "tiny", "--memory", "256M",
        "--disk", "size=16M,format=qcow2,serial=data",
    )  # fmt: skip
    here.run("start", "web", "--wait")
    inside(here, "web", COUNTER)
    return here


class Guest:
    """A guest that counts in its RAM and writes the number to its disk, too."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.disk = device(home, "web", "data")
        self.count = 0

    def work(self) -> None:
        """Counts on by one, and has a block of that number on the disk."""
        found = count(self.home, "web")
        # Where QEMU was killed after the guest had gone on it has been booted again.
        assert found == self.count + 1
        self.count = found
        lines = f"for i in $(seq 512); do echo block {found}; done >/tmp/blocks"
        onto = f"dd if=/tmp/blocks of=/dev/{self.disk} bs=4096 conv=sync,fsync"
        inside(self.home, "web", f"{lines}; {onto} 2>/dev/null")

    def check(self) -> None:
        """What is on the disk is what the guest knows."""
        text = f"block {self.count}\n" * 512
        wanted = hashlib.sha256(text.encode()).hexdigest()
        read = f"dd if=/dev/{self.disk} iflag=direct bs=4096 count=2 2>/dev/null"
        assert inside(
            self.home, "web", f"{read} | head -c {len(text)} | sha256sum"
        ).startswith(wanted)

    def boot(self) -> None:
        inside(self.home, "web", COUNTER)
        self.count = 0


def killed(home: Home, whom: str, words: tuple[str, ...], after: float) -> None:
    """Runs a command, and kills it or the VM's QEMU some time after its start."""
    process = home.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    if whom == "cli":
        process.kill()
    else:
        for each in survivors(home.path):
            if each.name().startswith("qemu-system"):
                os.kill(each.pid, signal.SIGKILL)
    process.wait()


def settled(home: Home) -> str:
    """The state of the VM, once what was killed has gone."""
    deadline = time.monotonic() + GONE_WITHIN
    while (state := str(row(home, "web")["state"])) in ("starting", "stopping", "busy"):
        assert time.monotonic() < deadline, state
    return state


def ran(home: Home) -> bool:
    """Whether the guest has gone on in the VM's last run."""
    events = (home.path / "state/vms/web/events.out").read_text().splitlines()
    return any(json.loads(line).get("event") == "RESUME" for line in events)


@pytest.mark.parametrize("whom", ["cli", "qemu"])
def test_the_guest_is_there_or_the_whole_file(guest: Home, whom: str) -> None:
    at, moments = Guest(guest), random.Random(whom)
    folder = guest.path / "state/vms/web"
    met = {"running": 0, "paused": 0, "saved": 0, "killed while it ran": 0}

    def again() -> None:
        """Brings the guest back, in whichever way there is."""
        state = settled(guest)
        if state == "off" and not row(guest, "web")["saved"]:
            # A guest that runs is lost with its QEMU, and only then.
            assert whom == "qemu"
            assert ran(guest)
            met["killed while it ran"] += 1
            guest.run("start", "web", "--wait")
            at.boot()
            at.work()
            return
        met["saved" if state == "off" else state] += 1
        if state == "off":
            guest.run("start", "web")
        elif state == "paused":
            guest.run("resume", "web")
        at.check()
        at.work()

    at.work()
    for _ in range(ROUNDS):
        killed(guest, whom, ("save", "web"), moments.uniform(0.2, LATEST))
        again()
        guest.run("save", "web")
        killed(guest, whom, ("start", "web"), moments.uniform(0.2, LATEST))
        again()
    guest.run("save", "web")
    assert begun(folder) == []
    guest.run("start", "web")
    at.check()
    assert met["saved"] >= 2, met
    assert not (folder / "saved.state").exists()
    guest.run("kill", "web")
