"""SIGKILL at each step of a save or a start: the guest is there, or the whole file."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import pytest

from tests.guest.conftest import WEB, Home
from tests.guest.disks import device, inside
from tests.guest.saves import begun, row
from tests.guest.test_snapshots import COUNTER, count
from tests.steps import Cut

pytestmark = pytest.mark.timeout(900)

GONE_WITHIN = 20.0


@pytest.fixture
def guest(here: Home) -> Home:
    here.boot("web", *WEB)
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


# What changes something in a save and in a start from what was saved.
SAVE = (
    "make changing.lock", "qmp stop", "make .qemuctl-*.new", "qmp migrate",
    "rename saved.state", "qmp quit",
)  # fmt: skip
START = (
    "rename started.yaml", "start sh shepherd.sh", "rename process.json",
    "qmp migrate-incoming", "qmp cont", "remove saved.state",
)  # fmt: skip
# In the others no QEMU is there yet, or the one before is.
QEMU = ("qmp migrate", "qmp quit")
QEMU_AGAIN = ("qmp migrate-incoming", "remove saved.state")


@pytest.mark.parametrize(
    ("whom", "saving", "starting"),
    [("command", SAVE, START), ("qemu", QEMU, QEMU_AGAIN)],
)
def test_the_guest_is_there_or_the_whole_file(
    guest: Home,
    tmp_path: Path,
    whom: str,
    saving: tuple[str, ...],
    starting: tuple[str, ...],
) -> None:
    at, log = Guest(guest), str(tmp_path / "steps")
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
            guest.run("rm", "web")
            guest.boot("web", *WEB)
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

    def killed(words: tuple[str, ...], step: str) -> None:
        cut = Cut(log, step, whom)
        done = guest.run(*words, cut=cut, check=None, timeout=120)
        assert step in cut.names()
        assert (done.returncode == -signal.SIGKILL) == (whom == "command"), done

    at.work()
    for step in saving:
        killed(("save", "web"), step)
        again()
    for step in starting:
        guest.run("save", "web")
        killed(("start", "web"), step)
        again()
    guest.run("save", "web")
    assert begun(folder) == []
    guest.run("start", "web")
    at.check()
    assert met["saved"] >= 2, met
    assert not (folder / "saved.state").exists()
    guest.run("kill", "web")
