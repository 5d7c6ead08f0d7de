"""What ends a wait before its time, and what QEMU's own status says."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.guest.conftest import Home


def test_a_guest_that_does_not_boot_is_told_by_its_consoles_own_words(
    here: Home, tmp_path: Path
) -> None:
    text = tmp_path / "text.raw"
    text.write_text("this is no disk\n")
    for given in (["--disk", "size=1M"], ["--disk", f"path={text}"]):
        here.run("create", "a", *given, "--memory", "64M", "--nic", "none")
        words = here.words("start", "a", "--wait", check=1)
        assert "the guest does not boot: No bootable device" in words
        assert "does not boot" in here.words("exec", "a", "true", check=1)
        here.run("rm", "-f", "a")
    assert "does not boot" in here.words("run", text, "true", check=1)
    # A kernel without what it boots from, which its panic tells.
    here.run("create", "a", "--image", "tiny", "--append", "console=ttyS0 rdinit=/x")
    words = here.words("start", "a", "--wait", check=1)
    assert "does not boot: " in words
    assert "Kernel panic - not syncing" in words
    here.run("kill", "a")


@pytest.mark.parametrize(("value", "status"), [(0x10, 33), (0x41, 131), (0x7F, 255)])
def test_the_status_that_a_guest_gives_qemu_is_that_of_run(
    here: Home, tmp_path: Path, value: int, status: int
) -> None:
    disk = tmp_path / "exits.raw"  # mov al, value; out 0xf4, al; hlt
    code = bytes([0xB0, value, 0xE6, 0xF4, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
    disk.write_bytes(code.ljust(1 << 20, b"\0"))
    device = ["--qemu-arg=-device", "--qemu-arg=isa-debug-exit,iobase=0xf4,iosize=4"]
    small = ["--memory", "64M", "--nic", "none"]
    words = here.words("run", disk, *small, *device, input=b"x", check=status)
    assert f"failed with status {status}" in words
    if status == 131:
        here.run("create", "a", "--disk", f"path={disk}", *small, *device)
        here.run("start", "a", check=None)
        here.run("wait", "a", "--for", "stopped")
        (row,) = json.loads(here.text("ls", "a", "--json"))
        assert row["ended"] == "failed with status 131"


def test_a_guest_that_was_paused_knows_the_time(shared: Home, web: str) -> None:
    def behind() -> float:
        asked = time.time()
        return asked - float(shared.text("exec", web, "date", "+%s"))

    shared.run("pause", web)
    # As if the pause had been one of a minute and a half.
    back = f"@{time.time() - 90:.0f}"
    shared.run("resume", web)
    shared.run("exec", web, "date", "-u", "-s", back)
    assert behind() > 80
    shared.run("pause", web)
    time.sleep(1.2)  # time itself is what the guest is to miss
    shared.run("resume", web)
    assert abs(behind()) < 10


def test_a_command_runs_where_no_folder_can_be_written_to(
    shared: Home, web: str
) -> None:
    def mounted(how: str, *places: str) -> None:
        script = f"for p; do {how} $p; done"
        shared.run("exec", web, "sh", "-c", script, "sh", *places)

    readonly = "mount -t tmpfs -o ro none"
    mounted(readonly, "/tmp")
    try:
        assert shared.text("exec", web, "cat", input=b"one") == "one"
        mounted(readonly, "/run", "/dev/shm")
        done = shared.run(
            "exec", web, "sh", "-c", "cat; echo err >&2; exit 7", input=b"x", check=7
        )
        assert (done.stdout, done.stderr) == (b"x", b"err\n")
        slow = shared.popen(
            "exec", web, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        time.sleep(1)  # longer than an input may take that is there at once
        assert slow.communicate(b"in parts", timeout=60)[0] == b"in parts"
        assert "not found" in shared.words("exec", web, "no-such", check=127)
    finally:
        mounted("umount", "/tmp", "/run", "/dev/shm")
    assert shared.text("exec", web, "cat", input=b"two") == "two"
