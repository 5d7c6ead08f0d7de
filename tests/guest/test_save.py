"""A guest that is saved goes on where it was, once, or the file says why not."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.guest.conftest import Home
from tests.guest.disks import device, inside
from tests.guest.saves import flip, row, saved
from tests.guest.test_snapshots import COUNTER, count


def test_a_start_goes_on_with_all_that_was_plugged_in(
    shared: Home, counting: str, goes_on: None
) -> None:
    shared.run("disk", "add", "web", "--size", "16M", "--target", "late", "--live")
    shared.run("nic", "add", "web", "--id", "extra", "--live")
    shared.run("set", "web", "--cpus", "2", "--live")
    late = device(shared, "web", "late")
    inside(shared, "web", f"echo kept | dd of=/dev/{late} conv=sync,fsync 2>/dev/null")
    cards = inside(shared, "web", "ls /sys/class/net")
    words = shared.words("save", "web")
    pattern = (
        r"saved web: [\d.]+M in [\d.]+ s; it goes on from there with: qemuctl start"
    )
    assert re.search(pattern, words)
    assert row(shared, "web")["ended"] == "saved"
    assert row(shared, "web")["saved"]
    assert re.search(r"^web +off .* saved$", shared.text("ls", "-a"), re.MULTILINE)
    info = json.loads(shared.text("info", "web", "--json"))
    assert info["saved"] == str(saved(shared))
    words = shared.words("start", "web")
    assert re.fullmatch(
        r"web goes on from where it was saved: running, [\d.:>-]+\n", words
    )
    assert inside(shared, "web", f"head -c 4 /dev/{late}") == "kept"
    assert inside(shared, "web", "ls /sys/class/net; nproc").split() == [
        *cards.split(), "2",
    ]  # fmt: skip
    assert not row(shared, "web")["saved"]
    # And once more, with what goes now.
    shared.run("disk", "rm", "web", "late", "--live", "--delete")
    shared.run("nic", "rm", "web", "extra", "--live")
    shared.run("save", "web")
    shared.run("start", "web")
    assert device(shared, "web", "late") == ""
    assert "late" not in shared.text("disk", "ls", "web")


def test_its_clock_is_right_afterwards(shared: Home, counting: str) -> None:
    inside(shared, "web", "date -u -s @1000000000")
    shared.run("save", "web")
    assert "clock" not in shared.words("start", "web")
    assert abs(float(inside(shared, "web", "date +%s")) - time.time()) < 30


def test_a_paused_guest_arrives_paused_and_is_saved_until_it_runs(
    shared: Home, counting: str, goes_on: None
) -> None:
    shared.run("pause", "web")
    shared.run("save", "web")
    assert "saved: paused" in shared.words("start", "web")
    shared.run("kill", "web")
    assert row(shared, "web")["saved"]
    shared.run("start", "web")
    assert row(shared, "web")["state"] == "paused"
    shared.run("resume", "web")
    assert not saved(shared).exists()
    shared.run("save", "web")
    assert "saved: paused" in shared.words("start", "web", "--paused")
    shared.run("resume", "web")


def test_a_vm_may_be_renamed_meanwhile(
    shared: Home, counting: str, goes_on: None
) -> None:
    shared.run("save", "web")
    shared.run("rename", "web", "www")
    shared.run("start", "www")
    assert shared.text("exec", "www", "--", "echo", "here") == "here\n"
    shared.run("save", "www")
    shared.run("rename", "www", "web")


def test_what_would_break_it_is_refused(
    shared: Home, counting: str, goes_on: None
) -> None:
    shared.run("save", "web")
    for command in (
        ("clone", "web", "web2"),
        ("clone", "web", "web2", "--linked"),
        ("export", "web", shared.path / "web.tar"),
        ("snapshot", "create", "web", "one"),
        ("disk", "resize", "web", "disk0", "128M"),
        ("start", "web", "--boot", "disk"),
    ):
        words = shared.words(*command, check=1)
        assert "saved" in words
        assert "--fresh" in words
    words = shared.words("start", "web", "--fresh", check=2)
    assert "qemuctl start web --fresh --yes" in words
    assert row(shared, "web")["saved"]


def test_a_state_that_was_damaged_does_not_run_and_is_still_there(
    shared: Home, counting: str, goes_on: None
) -> None:
    shared.run("save", "web")
    file, middle = saved(shared), saved(shared).stat().st_size // 2
    flip(file, middle)
    words = shared.words("start", "web", check=1)
    assert "the checksum of its state is wrong" in words
    assert row(shared, "web")["state"] == "off"
    flip(file, middle)


# -- files -------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [[], ["--compress"]])
def test_a_file_is_restored_here_and_as_another_vm(
    shared: Home, counting: str, goes_on: None, tmp_path: Path, compress: list[str]
) -> None:
    file = tmp_path / "web, the first.state"
    disk = device(shared, "web", "data")
    write = f"| dd of=/dev/{disk} conv=sync,fsync 2>/dev/null"
    read = f"dd if=/dev/{disk} bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\\0'"
    inside(shared, "web", f"echo before {write}")
    before = count(shared, "web")
    words = shared.words("save", "web", file, *compress)
    assert f"qemuctl restore {file}" in words
    assert row(shared, "web")["ended"] == "stopped"
    assert file.stat().st_mode & 0o777 == 0o600
    mac = "cat /sys/class/net/eth0/address"
    words = shared.words("restore", file, "--name", "web2")
    assert "web2 goes on from where it was saved: running" in words
    assert count(shared, "web2") == before + 1
    inside(shared, "web2", f"echo other {write}")
    words = shared.words("restore", file, "--wait")
    assert "web goes on" in words
    assert count(shared, "web") == before + 1
    assert inside(shared, "web", read) == "before"
    assert inside(shared, "web2", read) == "other"
    assert inside(shared, "web", mac) == inside(shared, "web2", mac)
    assert "the VM is on" in shared.words("restore", file, check=1)
    shared.run("kill", "web2")
    assert "exists already: web2" in shared.words(
        "restore", file, "--name", "web2", check=1
    )
    # It is a VM like any other.
    shared.run("start", "web2", "--paused")
    shared.run("rm", "-f", "web2")
    assert "there is a file already" in shared.words("save", "web", file, check=1)


def test_fresh_forgets_it(shared: Home, counting: str) -> None:
    inside(shared, "web", "touch /tmp/here")
    shared.run("save", "web")
    shared.run("start", "web", "--fresh", "--yes", "--wait")
    assert not saved(shared).exists()
    script = "if [ -e /tmp/here ]; then echo the same; else echo booted; fi"
    assert inside(shared, "web", script) == "booted"
    inside(shared, "web", COUNTER)  # for who comes next
