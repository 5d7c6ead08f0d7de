"""Live migration between two hosts that only a network joins, by ssh."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.conftest import wait_until
from tests.guest.hosts import Host, hosts  # noqa: F401 (a fixture)
from tests.guest.moving import (
    ALIVE,
    Migration,
    check_disks,
    kill,
    move,
    one_copy,
    parties,
    rows,
    state,
)
from tests.guest.test_migrate_tls import authority
from tests.guest.ticking import CLOCK, SILENCE, begin, begin_again, listening, told
from tests.unproven import Need, unproven

NAME = "clock"
# After so many seconds a link that says nothing is a broken one, and a few more.
BROKEN = 90.0


@pytest.fixture(scope="module")
def pair(hosts: tuple[Host, Host]) -> tuple[Host, Host]:  # noqa: F811
    a, _ = hosts
    begin(a, a.boot(NAME, *CLOCK))
    return hosts


@pytest.fixture
def sides(pair: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """The host with the guest and the other one; the link between them is whole."""
    a, b = pair
    here, there = (a, b) if state(a, NAME) in ALIVE else (b, a)
    before = told(here, NAME).check()
    yield here, there
    for host in pair:
        host.link("up")
        host.slow(None)
    assert told(one_copy(pair, NAME), NAME).check() > before


def ssh(host: Host) -> str:
    return f"ssh://{host.name}"


def test_there_and_back_by_ssh(sides: tuple[Host, Host]) -> None:
    here, there = sides
    with listening(here, there) as heard:
        wait_until(lambda: heard.last)
        for source, target in ((here, there), (there, here)):
            result = move(source, NAME, ssh(target))
            assert result["destination"] == ssh(target)
            assert result["downtime_ms"] < SILENCE * 1000
            wait_until(lambda after=heard.last: heard.last > after)
            assert state(source, NAME) is None
            row = rows(target)[NAME]
            assert (row["state"], row["problem"]) == ("running", None)
            assert row["forwards"]
    assert heard.silence < SILENCE


def test_there_and_back_with_encrypted_streams(
    sides: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is said and the disks' plan go by ssh, RAM and disks by TCP and TLS."""
    here, there = sides
    folder = tmp_path_factory.mktemp("tls") / "certificates"
    authority(folder, here.address, there.address)
    for source, target in ((here, there), (there, here)):
        move(source, NAME, ssh(target), "--tls", folder)
        assert state(target, NAME) == "running"
    # One for which another address stands is not believed, and nothing has moved.
    other = authority(folder.with_name("other"), "192.0.2.1")
    words = here.words("migrate", NAME, ssh(there), "--tls", other, check=1)
    assert "certificate" in words.lower()
    assert state(here, NAME) == "running"


def test_a_host_without_qemuctl_where_it_was_looked_for(
    sides: tuple[Host, Host],
) -> None:
    here, there = sides
    receiver = ["--receiver", "/opt/none/qemuctl"]
    words = here.words("migrate", NAME, ssh(there), *receiver, check=1)
    assert f"there is no qemuctl in {ssh(there)}" in words
    assert "/opt/none/qemuctl" in words
    assert "hint: install it there" in words


def test_no_room_there_is_said_before_anything_is_copied(
    sides: tuple[Host, Host],
) -> None:
    here, there = sides
    small = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "small"]
    folder = there.inside / "state"
    subprocess.run(there.enter("mkdir", "-p", "-m", "700", folder), check=True)
    subprocess.run(there.enter(*small, folder), check=True)
    try:
        words = here.words("migrate", NAME, ssh(there), check=1)
        assert "too little room" in words
        assert "(check)" in words
        listed = subprocess.run(there.enter("find", folder), capture_output=True)
        assert NAME.encode() not in listed.stdout
    finally:
        subprocess.run(there.enter("umount", folder), check=True)


def test_a_disk_that_fills_up_while_it_is_copied_leaves_the_guest_here(
    sides: tuple[Host, Host],
) -> None:
    here, there = sides
    small = ["mount", "-t", "tmpfs", "-o", "size=90m,mode=700", "small"]
    folder = there.inside / "state"
    subprocess.run(there.enter(*small, folder), check=True)
    try:
        moving = Migration(here, NAME, ssh(there), "--bandwidth", "1M")
        moving.until("storage")
        fill = ["dd", "if=/dev/zero", f"of={folder}/fill", "bs=1M"]
        subprocess.run(there.enter(*fill), capture_output=True)
        status, words = moving.end()
        assert status == 1
        assert "space" in words, words
        left = subprocess.run(there.enter("find", folder), capture_output=True)
        assert NAME.encode() not in left.stdout
    finally:
        subprocess.run(there.enter("umount", folder), check=True)
    assert state(here, NAME) == "running"


@pytest.mark.parametrize("phase", ["storage", "ram"])
def test_a_killed_ssh_leaves_the_guest_here(
    sides: tuple[Host, Host], phase: str
) -> None:
    here, there = sides
    moving = Migration(here, NAME, ssh(there), "--bandwidth", "3M")
    moving.until(phase)
    kill(parties(here, there)["ssh"])
    status, words = moving.end()
    assert status == 1
    assert "error: " in words
    assert state(here, NAME) == "running"
    wait_until(lambda: state(there, NAME) is None)


def test_a_link_that_stalls_for_a_moment_is_waited_for(
    sides: tuple[Host, Host],
) -> None:
    here, there = sides
    moving = Migration(here, NAME, ssh(there), "--bandwidth", "10M")
    moving.until("ram")
    there.link("down")
    time.sleep(3)  # as long as the link is to be down
    there.link("up")
    assert moving.end()[0] == 0
    assert state(there, NAME) == "running"


def test_a_link_that_is_cut_leaves_the_guest_here(sides: tuple[Host, Host]) -> None:
    here, there = sides
    moving = Migration(here, NAME, ssh(there), "--bandwidth", "3M")
    moving.until("ram")
    there.link("down")
    status, words = moving.end(timeout=BROKEN)
    assert status == 1
    assert "error: " in words
    assert state(here, NAME) == "running"
    # The other side finds out by itself, even though nobody tells it any more.
    there.link("up")
    wait_until(lambda: not parties(here, there)["receiver"], timeout=60)


def test_a_slow_link_does_not_lose_anything(sides: tuple[Host, Host]) -> None:
    here, there = sides
    if not here.slow("200mbit"):
        unproven("migration and ssh by a slow link", Need.TC)
    move(here, NAME, ssh(there), "--downtime", "1s")


def test_in_the_end_its_disk_is_whole(pair: tuple[Host, Host]) -> None:
    home = one_copy(pair, NAME)
    home.run("stop", NAME)
    check_disks(home, NAME)
    begin_again(home, NAME)
