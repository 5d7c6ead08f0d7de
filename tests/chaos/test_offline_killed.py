"""SIGKILL at each step of the move of a VM that is off: at no moment can both copies
be started, and there is always one that can, at the latest after `migrate-recover`."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import sweep
from tests.guest.conftest import Home, make_home, qemu  # noqa: F401 (a fixture)
from tests.guest.moving import destination, state
from tests.steps import Cut

NAME = "idle"


@pytest.fixture(scope="module")
def homes(
    tmp_path_factory: pytest.TempPathFactory,
    qemu: Path,  # noqa: F811
) -> Iterator[tuple[Home, Home]]:
    """Two homes, the first of which has the VM."""
    folder = tmp_path_factory.mktemp("offline")
    a, b = make_home(folder / "a"), make_home(folder / "b")
    a.run(
        "create", NAME, "--memory", "32M", "--nic", "none",
        "--disk", "size=1M,format=qcow2",
    )  # fmt: skip
    a.run("start", NAME, "--paused")
    a.run("kill", NAME)
    io(a, "write -P 0x5a 64k 64k")
    yield a, b
    sweep(folder)


def io(home: Home, command: str) -> str:
    disk = home.path / f"state/vms/{NAME}/disks/disk0.qcow2"
    argv = ["qemu-io", "-c", command, disk]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def startable(homes: tuple[Home, Home]) -> list[Home]:
    """The homes in which the VM is, and nothing stands in the way of its start."""
    found = []
    for home in homes:
        if state(home, NAME) is None:
            continue
        row = home.text("ls", "-a")
        if "outcome unknown" in row:
            words = home.words("start", NAME, check=1)
            assert f"qemuctl migrate-recover {NAME}" in words
        else:
            found.append(home)
    return found


# Where each changes what the other side, or the next command, finds.
COMMAND = ("link archive", "sync idle (2)", "remove keep-disks")
RECEIVER = ("rename idle", "sync vms", "rename *")


@pytest.mark.parametrize(
    ("whom", "step"),
    [("command", step) for step in COMMAND] + [("receiver", step) for step in RECEIVER],
)
def test_there_is_one_that_can_be_started_and_never_two(
    homes: tuple[Home, Home], tmp_path: Path, whom: str, step: str
) -> None:
    (here,) = startable(homes)
    there = homes[1] if here == homes[0] else homes[0]
    cut = Cut(str(tmp_path / "log"), step, whom, syncs=True)
    done = here.run(
        "migrate", NAME, destination(there), "--offline", cut=cut, check=None
    )
    assert step in cut.names(), done.stderr
    assert (done.returncode == -signal.SIGKILL) == (whom == "command"), done
    found = startable(homes)
    assert len(found) <= 1
    if found != [here] and state(here, NAME) is not None:
        assert whom == "command"
        here.run("migrate-recover", NAME)
        assert found in ([], startable(homes))
    found = startable(homes)
    assert sum(state(home, NAME) is not None for home in homes) == len(found) == 1
    assert done.returncode != 0 or found == [there]
    assert "verification failed" not in io(found[0], "read -P 0x5a 64k 64k")
    if step == (*COMMAND, *RECEIVER)[-1]:
        found[0].run("start", NAME, "--paused")
        found[0].run("kill", NAME)


def in_order(names: list[str], *steps: str) -> None:
    """Fails unless these steps are there, one after the other."""
    rest = iter(names)
    missing = [step for step in steps if step not in rest]
    assert not missing, names


def test_what_is_told_as_done_is_on_the_disk(
    homes: tuple[Home, Home], tmp_path: Path
) -> None:
    (here,) = startable(homes)
    there = homes[1] if here == homes[0] else homes[0]
    cut = Cut(str(tmp_path / "there"), whom="receiver", syncs=True)
    here.run("migrate", NAME, destination(there), "--offline", cut=cut)
    in_order(
        cut.names(),
        # The disk, its folder, the rest; only then can it be seen; then it is told.
        "make *.*", "sync *.*", "sync disks", "sync vm.yaml", "sync .new-idle-*",
        "rename landed.json", "rename idle", "sync vms",
        "sync *.new", "rename *", "sync arrivals",
    )  # fmt: skip
    cut = Cut(str(tmp_path / "here"), syncs=True)
    there.run("migrate", NAME, destination(here), "--offline", cut=cut)
    in_order(
        cut.names(),
        # What it is about to do, and the word, are written down before.
        "sync migration.json.new", "rename migration.json", "sync idle",
        "link archive",
        "sync migration.json.new (2)", "rename migration.json (2)", "sync idle (2)",
        "rename .removed-idle-*", "sync vms",
    )  # fmt: skip
