"""The two hosts on this one are as far apart as two hosts are, and as near."""

from __future__ import annotations

import subprocess
import time

from tests.guest.hosts import Host, hosts  # noqa: F401 (a fixture)
from tests.unproven import Need, unproven


def ssh(
    here: Host, there: Host, command: str, **options
) -> subprocess.CompletedProcess:
    argv = here.enter(
        "ssh", "-oBatchMode=yes", "-oConnectTimeout=10", there.name, command
    )
    return subprocess.run(argv, capture_output=True, check=False, timeout=30, **options)


def test_each_has_a_home_of_its_own_at_the_same_path_and_is_reached_by_ssh(
    hosts: tuple[Host, Host],  # noqa: F811
) -> None:
    a, b = hosts
    assert a.inside == b.inside
    b.run("create", "theirs", "--disk", "size=1M")
    assert a.text("ls", "-aq") == ""
    seen = ssh(a, b, "qemuctl ls -aq; cat /proc/sys/kernel/random/boot_id")
    name, boot = seen.stdout.decode().split()
    assert name == "theirs"
    assert ssh(b, a, "cat /proc/sys/kernel/random/boot_id").stdout.decode() != boot
    assert not ssh(a, b, f"test -e {a.path}").stdout
    b.run("rm", "theirs")


def test_what_runs_there_is_seen_and_ends_with_it(
    hosts: tuple[Host, Host],  # noqa: F811
) -> None:
    a, b = hosts
    assert not a.processes()
    with subprocess.Popen(b.enter("sleep", "60")) as sleeping:
        while not b.processes():
            assert sleeping.poll() is None
        assert [p.name() for p in b.processes()] == ["sleep"]
        assert not a.processes()
        b.processes()[0].kill()


def test_a_link_that_is_down_swallows_and_one_that_is_slow_takes_its_time(
    hosts: tuple[Host, Host],  # noqa: F811
) -> None:
    a, b = hosts
    assert b.link("down")
    assert ssh(a, b, "true").returncode == 255
    assert b.link("up")
    assert ssh(a, b, "true").returncode == 0
    if not a.slow("16mbit"):
        unproven("migration and ssh by a slow link", Need.TC)
    start = time.monotonic()
    assert ssh(a, b, "cat >/dev/null", input=bytes(2 << 20)).returncode == 0
    assert time.monotonic() - start > 0.8
    assert a.slow(None)
