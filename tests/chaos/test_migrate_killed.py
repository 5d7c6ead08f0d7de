"""SIGKILL of whoever takes part in a migration, in each of its phases: one copy runs
or can be started, and nothing of the other one is left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import sweep, wait_until
from tests.guest.conftest import Home, make_home, qemu  # noqa: F401 (a fixture)
from tests.guest.hosts import Host, hosts  # noqa: F401 (a fixture)
from tests.guest.moving import (
    ALIVE,
    PHASES,
    Migration,
    check_disks,
    destination,
    kill,
    one_copy,
    parties,
    state,
)

NAME = "tick"
# A guest of one sector that writes the alphabet to the serial port, a letter at each
# tick of its timer, over and over: `mov dx, 0x3f8; mov al, 'a'`, then `out dx, al;
# inc al; cmp al, 'z' + 1; jne +2; mov al, 'a'; sti; hlt; jmp -13`.
LETTERS = bytes.fromhex("baf803 b061 ee fec0 3c7b 7502 b061 fb f4 ebf3")
SECTOR = LETTERS.ljust(510, b"\0") + b"\x55\xaa"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
# Something to copy that is not zero, so that a slow migration takes its time.
CONTENT = 256 << 10
SLOW = "300k"
# Before it, the guest goes on where it was, whoever dies.
BEFORE = PHASES[: PHASES.index("switch-over")]

PARTIES = ("command", "receiver", "source", "destination")
CASES = [
    (party, phase)
    for phase in ("prepare", "storage", "ram", "switch-over", "confirm")
    for party in PARTIES
    if (party, phase) != ("destination", "prepare")  # it is only being started
]
CASES += [("command", "clean-up")]
# Before the switch-over each party dies once; the soak has all of the rest.
BEFORE_IT = {"prepare": "receiver", "storage": "source", "ram": "destination"}
EACH = [
    (party, phase) for party, phase in CASES if BEFORE_IT.get(phase, party) == party
]


def boot(home: Home, folder: Path, seen: Path | None = None) -> None:
    """Starts the guest; `folder` is `seen` by the home at another path, or the same."""
    disk = folder / "letters.raw"
    disk.write_bytes((SECTOR + os.urandom(CONTENT)).ljust(1 << 20, b"\0"))
    image = (seen or folder) / disk.name
    home.run(
        "create", NAME, "--image", image, "--disk-mode", "full", "--memory", "64M",
        "--nic", "none", "--disk", "size=4M",
    )  # fmt: skip
    home.run("start", NAME)
    home.run("wait", NAME, "--for", "serial:klmno")


@pytest.fixture(scope="module")
def two_homes(
    tmp_path_factory: pytest.TempPathFactory,
    qemu: Path,  # noqa: F811
) -> Iterator[tuple[Home, Home]]:
    folder = tmp_path_factory.mktemp("two")
    a, b = make_home(folder / "a"), make_home(folder / "b")
    try:
        yield a, b
    finally:
        for home in (a, b):
            for name in home.text("ls", "-q").split():
                home.run("kill", name)
                check_disks(home, name)
    sweep(a.path.parent)


@pytest.fixture
def homes(two_homes: tuple[Home, Home]) -> tuple[Home, Home]:
    """Two homes, one of which has the guest, whatever an earlier test has left."""
    found = [home for home in two_homes if state(home, NAME) is not None]
    if len(found) != 1 or state(found[0], NAME) not in ALIVE:
        for home in found:
            home.run("rm", "--force", NAME)
        boot(two_homes[0], two_homes[0].path.parent)
    return two_homes


def said(home: Home) -> str:
    """The letters that the guest has written without anything between."""
    log = home.path / f"state/vms/{NAME}/serial.log"
    return re.findall(r"[a-z]*\Z", log.read_text(errors="replace"))[0]


def goes_on(home: Home) -> None:
    """Fails unless the guest ticks there, and no letter is missing."""
    start = len(said(home))
    wait_until(lambda: len(said(home)) > start + 6)
    text = said(home)
    assert text in ALPHABET * (len(text) // 26 + 2)


def killed(homes: tuple[Home, Home], party: str, phase: str, *more: str) -> None:
    a, b = homes
    here, there = (a, b) if state(a, NAME) in ALIVE else (b, a)
    to = f"ssh://{there.name}" if isinstance(there, Host) else destination(there)
    limit = ["--bandwidth", SLOW] if phase in BEFORE else []
    moving = Migration(here, NAME, to, *limit, *more)
    moving.until(phase)
    kill(parties(here, there)[party])
    status, words = moving.end(timeout=40)
    expected = {-9} if party == "command" else {0, 1}
    assert status in expected | ({137} if isinstance(here, Host) else set()), words
    assert words.count("error:") == (status == 1)
    home = one_copy(homes, NAME, crashed=party == "command")
    assert home == here or phase not in BEFORE
    assert home == there or status != 0
    goes_on(home)


@pytest.mark.parametrize(("party", "phase"), EACH)
def test_whoever_dies_one_copy_is_left(
    homes: tuple[Home, Home], party: str, phase: str
) -> None:
    killed(homes, party, phase)


@pytest.mark.parametrize("phase", ["storage", "ram"])
def test_the_next_migration_works_where_the_command_died(
    homes: tuple[Home, Home], phase: str
) -> None:
    """Without a `migrate-recover` in between: the command itself tells of it."""
    a, b = homes
    here, there = (a, b) if state(a, NAME) in ALIVE else (b, a)
    moving = Migration(here, NAME, destination(there), "--bandwidth", SLOW)
    moving.until(phase)
    moving.process.kill()
    moving.end()
    words = here.words("migrate", NAME, destination(there), check=1)
    assert "migrate-recover" in words
    here.run("migrate-recover", NAME)
    here.run("migrate", NAME, destination(there))
    assert one_copy(homes, NAME) == there
    goes_on(there)


@pytest.fixture(scope="module")
def far(
    hosts: tuple[Host, Host],  # noqa: F811
) -> tuple[Host, Host]:
    """Two hosts, the guest on the first."""
    a = hosts[0]
    boot(a, a.path.parent, seen=a.inside.parent)
    return hosts


@pytest.mark.parametrize(
    "phase", ["prepare", "storage", "ram", "switch-over", "confirm"]
)
def test_without_ssh_one_copy_is_left(far: tuple[Host, Host], phase: str) -> None:
    killed(far, "ssh", phase)


@pytest.mark.parametrize("party", ["command", "receiver"])
def test_on_two_hosts_too(far: tuple[Host, Host], party: str) -> None:
    killed(far, party, "ram")
