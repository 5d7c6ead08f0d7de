"""Memory that was plugged in comes along, or the guest stays where it is."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import sweep
from tests.guest.conftest import Home, make_home
from tests.guest.disks import inside
from tests.guest.moving import destination
from tests.guest.ticking import CLOCK

SIZE = "awk '/MemTotal/{print $2}' /proc/meminfo"


def test_memory_that_was_plugged_in_comes_along_or_is_refused(
    here: Home, tmp_path: Path
) -> None:
    """QEMU 10.0 without KVM aborts while it sends virtio-mem: no guest is lost so."""
    there = make_home(tmp_path / "there")
    try:
        here.boot("clock", *CLOCK)
        here.run("set", "clock", "--memory", "320M")
        memory = inside(here, "clock", SIZE)
        done = here.run("migrate", "clock", destination(there), check=None)
        alive = there if done.returncode == 0 else here
        assert done.returncode == 0 or b"virtio-mem" in done.stderr
        assert inside(alive, "clock", SIZE) == memory
        alive.run("kill", "clock")
    finally:
        sweep(there.path)
