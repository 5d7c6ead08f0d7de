"""What `diff` and `info` say of a VM that was changed while it runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.guest.conftest import Home
from tests.guest.disks import listed


def diff(home: Home, vm: str) -> list[str]:
    return home.text("diff", vm).splitlines()


def shown(home: Home, vm: str) -> dict[str, object]:
    """What `info` says; it leaves out what a busy QEMU does not tell in time."""

    def known() -> list[dict[str, object]]:
        found = json.loads(home.text("info", vm, "--json"))["differences"]
        return [] if found is None else [found]

    (found,) = wait_until(known, 60)
    return dict(found)


# Each ends as it began.
BOTH = [
    [
        "disk set web disk0 --iops 500 --bps 20M",
        "disk set web disk0 --iops 0",
        "disk set web disk0 --bps 0",
    ],
    ["disk resize web disk0 +8M", "disk resize web disk0 +8M"],
    [
        "disk add web --size 8M --target vdb --iops 30",
        "disk resize web vdb 16M",
        "disk set web vdb --iops 50",
        "disk rm web vdb",
    ],
    ["disk add web --size 8M --target s --bus scsi --serial x", "disk rm web s"],
    ["nic link web nic0 down", "nic link web nic0 up"],
    ["nic forward add web :80", "nic forward rm web :80"],
    [
        "nic add web user,forward=:80 --model e1000 --id lan",
        "nic link web lan down",
        "nic forward add web :81 lan",
        "nic rm web lan",
    ],
    # A card that few have.
    ["nic add web --model ne2k_pci --id rare", "nic rm web rare"],
    ["nic rm web nic0", "nic add web user,forward=:22 --id nic0"],
]


@pytest.mark.parametrize("commands", BOTH, ids=lambda lines: lines[0])
def test_what_is_live_and_configured_is_no_difference(
    shared: Home, web: str, commands: list[str]
) -> None:
    for line in commands:
        words = line.split()
        if words[:3] == ["nic", "forward", "add"] and len(words) == 6:
            words[4:] = [words[5], words[4]]
        shared.run(*words)
        assert diff(shared, web) == [], line
    assert shown(shared, web) == {}


def test_limits_of_this_run_or_of_the_next(shared: Home, web: str) -> None:
    shared.run("disk", "set", web, "disk0", "--iops", 500)
    shared.run("disk", "set", web, "disk0", "--iops", 100, "--live")
    assert diff(shared, web) == ["disks.disk0.iops: 100 -> 500"]
    shared.run("disk", "set", web, "disk0", "--bps", "2M", "--live")
    assert "disks.disk0.bps: 2M -> none" in diff(shared, web)
    shown = shared.text("info", web)
    assert "disks.disk0.iops: 100 now, 500 configured" in shown
    shared.run("disk", "set", web, "disk0", "--iops", 0, "--bps", 0)
    shared.run("disk", "set", web, "disk0", "--bps", "1M", "--config")
    assert diff(shared, web) == ["disks.disk0.bps: none -> 1M"]
    shared.run("disk", "set", web, "disk0", "--bps", 0, "--config")
    assert diff(shared, web) == []


def test_a_size_of_this_run(shared: Home, web: str) -> None:
    size = int(listed(shared, web)["disk0"]["live"]["size_bytes"]) >> 20
    shared.run("disk", "resize", web, "disk0", "+8M", "--live")
    assert diff(shared, web) == [f"disks.disk0.size: {size + 8}M -> {size}M"]
    shared.run("disk", "resize", web, "disk0", "+8M")
    assert diff(shared, web) == []


def test_disks_of_this_run_or_of_the_next(shared: Home, web: str) -> None:
    shared.run("disk", "add", web, "--size", "8M", "--target", "now", "--live",
               "--serial", "mine")  # fmt: skip
    assert diff(shared, web) == ["disks.now: present -> none"]
    row = listed(shared, web)["now"]
    used = Path(row["path"]).stat().st_blocks * 512
    assert (row["serial"], row["used"]) == ("mine", used)
    (line,) = (
        line.split()
        for line in shared.text("disk", "ls", web).splitlines()
        if line.startswith("now")
    )
    assert line[1] == "mine"
    assert line[3] != "-"
    shared.run("disk", "add", web, "--size", "8M", "--target", "later", "--config")
    assert set(diff(shared, web)) == {
        "disks.now: present -> none", "disks.later: none -> present"
    }  # fmt: skip
    shared.run("disk", "rm", web, "now")
    shared.run("disk", "rm", web, "later")
    shared.run("disk", "rm", web, "disk0", "--live")
    assert diff(shared, web) == ["disks.disk0: none -> present"]
    path = listed(shared, web)["disk0"]["path"]
    shared.run("disk", "rm", web, "disk0", "--config")
    shared.run("disk", "add", web, "--path", path, "--target", "disk0",
               "--serial", "data", "--cache", "writethrough")  # fmt: skip
    assert diff(shared, web) == []


def test_cables_and_forwards_of_this_run_or_of_the_next(shared: Home, web: str) -> None:
    shared.run("nic", "link", web, "nic0", "down", "--live")
    assert diff(shared, web) == ["nics.nic0.link: down -> up"]
    shared.run("nic", "link", web, "nic0", "up", "--live")
    shared.run("nic", "link", web, "nic0", "down", "--config")
    assert diff(shared, web) == ["nics.nic0.link: up -> down"]
    shared.run("nic", "link", web, "nic0", "up")
    done = shared.text("nic", "forward", "add", web, ":90", "--live", "--json")
    address = json.loads(done)["address"]
    assert diff(shared, web) == [f"nics.nic0.forward: {address} -> none"]
    shared.run("nic", "forward", "rm", web, ":90", "--live")
    shared.run("nic", "forward", "add", web, ":91", "--config")
    assert diff(shared, web) == ["nics.nic0.forward: none -> :91"]
    shared.run("nic", "forward", "rm", web, ":91", "--config")
    assert diff(shared, web) == []


def test_cards_of_this_run_or_of_the_next(shared: Home, web: str) -> None:
    shared.run("nic", "add", web, "--id", "now", "--live")
    shared.run("nic", "add", web, "--id", "later", "--config")
    assert set(diff(shared, web)) == {
        "nics.now: present -> none", "nics.later: none -> present"
    }  # fmt: skip
    shared.run("nic", "rm", web, "now")
    shared.run("nic", "rm", web, "later")
    assert diff(shared, web) == []


def test_a_qemu_that_does_not_answer_is_no_qemu_without_differences(
    shared: Home, web: str
) -> None:
    pid = json.loads(shared.text("info", web, "--json"))["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        words = shared.run("diff", web, check=None)
        assert (words.returncode != 0, words.stdout) == (True, b"")
        assert words.stderr
        assert json.loads(shared.text("info", web, "--json"))["differences"] is None
        assert "not known: QEMU does not answer" in shared.text("info", web)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_the_disk_of_an_image_has_its_size_too(
    shared: Home, tmp_path: Path, sector: Path
) -> None:
    """What a start adds, a seed and a way in for ssh, is no difference."""
    path = tmp_path / "root.yaml"
    path.write_text(
        f"name: root\nmemory: 64M\nimage: {sector}\nnics: [none, user]\n"
        "cloud_init: true\n"
        "extra_args: [-netdev, 'user,id=mine', -device, 'e1000,netdev=mine,id=own']\n"
    )
    shared.run("create", "-f", path)
    shared.run("start", "root")
    assert len(json.loads(shared.text("info", "root", "--json"))["forwards"]) == 1
    assert diff(shared, "root") == []
    shared.run("disk", "resize", "root", "disk0", "+1M", "--live")
    assert diff(shared, "root") == ["root.size: 2M -> 1M"]
    shared.run("disk", "resize", "root", "disk0", "+1M")
    assert diff(shared, "root") == []
    shared.run("disk", "set", "root", "disk0", "--iops", 9, "--live")
    assert diff(shared, "root") == ["disks.disk0.iops: 9 -> none"]
    shared.run("nic", "forward", "rm", "root", "nic1", ":22", "--live")
    assert "nics.nic1.forward: none -> :22" in diff(shared, "root")
    shared.run("kill", "root")
    assert diff(shared, "root") == []
