"""Clones that are killed, cancelled, or find the disk full: the source is safe."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemuctl.copies.clone import clone
from qemuctl.image.chain import chain
from qemuctl.image.overlay import freeze
from qemuctl.paths import VmPaths, vms_dir
from qemuctl.registry import removal, vms
from qemuctl.spec import Disk
from tests.unit.disk_images import MIB, content, digest, qcow2, raw, write
from tests.unit.stores import PATTERN, add_vm
from tests.unproven import in_small_mounts

pytestmark = pytest.mark.usefixtures("bare_home")

WRITTEN = digest(b"\x07" * 4096 + bytes(2 * MIB - 4096))


@pytest.fixture
def web() -> VmPaths:
    """A VM with a disk that was written to."""
    paths = add_vm("web", disks=(Disk(size=2 * MIB),))
    write(paths.disk(0, "qcow2"), 0, 4096, 7)
    return paths


def written(name: str) -> str:
    return content(VmPaths.of(name).disk(0, "qcow2"))


FREEZING = """
import sys
from pathlib import Path
from qemuctl.image.overlay import freeze

steps = 0
def watch(event, arguments):
    global steps
    if event in ("os.link", "os.rename", "os.remove", "os.chmod", "subprocess.Popen"):
        print(steps, event, flush=True)
        steps += 1
        if steps > int(sys.argv[2]):
            sys.stdin.read()

sys.addaudithook(watch)
freeze(Path(sys.argv[1]))
"""


def test_wherever_it_is_killed_the_sources_disk_has_its_content(
    tmp_path: Path, processes: list[subprocess.Popen[Any]]
) -> None:
    """Killed before each step that changes a file, one after the other."""
    for step in itertools.count():
        disk = qcow2(tmp_path / f"disk{step}.qcow2", PATTERN)
        process = subprocess.Popen(
            [sys.executable, "-c", FREEZING, disk, str(step)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        seen = list(itertools.islice(process.stdout, step + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert content(disk) == digest(PATTERN)
        # And the next one does what this one should have done.
        base = freeze(disk)
        assert content(disk) == content(base) == digest(PATTERN)
        assert [layer.path for layer in chain(disk, "qcow2")] == [disk, base]
        assert not list(tmp_path.glob(".*"))
        if len(seen) <= step:  # it had ended by itself
            break
    assert step > 3


CLONING = """
import asyncio, sys
from qemuctl.image.overlay import freeze
from qemuctl.copies import clone

def stop(disk):
    base = freeze(disk)
    print(base, flush=True)
    sys.stdin.read()

clone.freeze = stop
asyncio.run(clone.clone("web", "new", linked=True))
"""


async def test_a_clone_that_is_killed_leaves_its_source_and_no_half_vm(
    web: VmPaths, processes: list[subprocess.Popen[Any]]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CLONING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.kill()
    process.wait()
    assert vms.names() == ["web"]
    assert written("web") == WRITTEN
    (left,) = removal.leftovers()
    shutil.rmtree(left)
    await clone("web", "new", linked=True)
    assert written("web") == written("new") == WRITTEN


async def test_a_cancelled_clone_leaves_no_half_vm(web: VmPaths) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(
        clone("web", "new", progress=lambda _done, _total: begun.set())
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in vms_dir().iterdir()] == ["web"]
    assert written("web") == WRITTEN


FULL = """
set -e
mount -t tmpfs -o size=12m tmpfs "$1"
cp -r "$2" "$1/home"
export QEMUCTL_HOME="$1/home"
if [ "$4" = --linked ]; then
    dd if=/dev/zero of="$1/filler" bs=4k 2>"$1/home/words" || true
fi
"$3" -m qemuctl clone web new $4 && exit 9
[ "$(ls -A "$1/home/state/vms")" = web ]
qemu-img compare "$1/home/state/vms/web/disks/disk0.qcow2" \
    "$2/state/vms/web/disks/disk0.qcow2"
"""


@pytest.mark.parametrize("how", ["--full", "--linked"])
def test_a_full_disk_is_told_and_the_source_is_as_it_was(
    bare_home: Path, tmp_path: Path, how: str
) -> None:
    web = add_vm("web", disks=(Disk(size=16 * MIB),))
    source = raw(tmp_path / "data", os.urandom(8 * MIB))
    subprocess.run(
        ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", source,
         web.disk(0, "qcow2")], check=True,
    )  # fmt: skip
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        [*in_small_mounts("a full disk"), "sh", "-c", FULL, "sh", small,
         bare_home, sys.executable, how], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Images are identical" in done.stdout
    assert "Traceback" not in done.stderr
    words = "no room left to write" if how == "--full" else "no space left"
    assert words in done.stderr.lower()
