"""A real rescue CD: booted once, ejected, inserted, refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CACHE
from tests.guest.conftest import Home

PACKAGE = "grub-rescue-pc"
MENU = "serial:GNU GRUB"
# What the boot sector on the disk says; SeaBIOS sends the end of its own line
# with a delay, so that it stands before or after the first of these.
DISK = r"serial:Booting from Hard Disk[.\s]*ok"


@pytest.fixture(scope="module")
def rescue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRUB's rescue CD, from the distribution's package, under an odd name."""
    kept = CACHE / "tests" / f"{PACKAGE}.iso"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        work = tmp_path_factory.mktemp("package")
        subprocess.run(
            ["apt-get", "download", "-q", PACKAGE],
            cwd=work, check=True, capture_output=True,
        )  # fmt: skip
        (package,) = work.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, work / "x"], check=True)
        (iso,) = work.glob("x/usr/lib/grub-rescue/*cdrom.iso")
        fresh = kept.with_suffix(".new")
        shutil.copyfile(iso, fresh)
        fresh.replace(kept)
    odd = tmp_path_factory.mktemp("cd") / "réscue, disc:1.iso"
    odd.symlink_to(kept)
    return odd


@pytest.fixture
def vm(here: Home, rescue: Path, boot_sector: Path) -> str:
    here.run(
        "create", "cd", "--cdrom", rescue, "--boot", "cdrom", "--memory", "128M",
        "--disk", f"path={str(boot_sector).replace(',', ',,')}",
    )  # fmt: skip
    return "cd"


def nodes(here: Home, vm: str) -> set[str]:
    text = here.text("qmp", vm, "query-named-block-nodes")
    lines = (line.split('"') for line in text.splitlines() if '"node-name"' in line)
    return {line[3] for line in lines}


def test_a_cd_is_booted_once_and_then_the_disk(here: Home, vm: str) -> None:
    here.run("start", vm)
    here.run("wait", vm, "--for", MENU)
    # The guest's own reboot, of the very machine, is one from the disk.
    here.run("reset", vm)
    here.run("wait", vm, "--for", DISK)
    here.run("kill", vm)
    here.run("start", vm)
    here.run("wait", vm, "--for", DISK)
    assert "GRUB" not in here.text("logs", vm)
    here.run("kill", vm)
    here.run("start", vm, "--boot", "cdrom")
    here.run("wait", vm, "--for", MENU)
    here.run("kill", vm)


def test_a_throwaway_vm_boots_a_cd_too(here: Home, rescue: Path) -> None:
    spec = here.path / "cd.yaml"
    spec.write_text(f"name: cd\nmemory: 128M\ncdrom: {rescue}\n")
    done = here.popen(
        "run", "-f", spec, "--boot", "cdrom",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert done.stdout is not None
    seen = b""
    while b"GNU GRUB" not in seen and (part := done.stdout.read(1)):
        seen += part
    done.terminate()
    _, words = done.communicate(timeout=60)
    assert b"GNU GRUB" in seen, words
    assert here.text("ls", "-aq") == ""


def test_a_medium_comes_and_goes_while_the_vm_runs(
    here: Home, vm: str, rescue: Path, until: Callable[..., Any]
) -> None:
    here.run("start", vm)
    here.run("wait", vm, "--for", MENU)
    here.run("cdrom", "eject", vm)
    assert nodes(here, vm) == {"disk0", "disk0-file"}
    assert "cdrom: ''" in here.path.joinpath("state/vms/cd/vm.yaml").read_text()
    here.run("cdrom", "eject", vm)  # nothing in it: nothing to do
    here.run("cdrom", "insert", vm, rescue)
    assert len(nodes(here, vm)) == 4
    assert str(rescue) in here.path.joinpath("state/vms/cd/vm.yaml").read_text()
    here.run("cdrom", "insert", vm, rescue)  # in the place of the other
    assert len(nodes(here, vm)) == 4
    spec = here.path.joinpath("state/vms/cd/vm.yaml").read_text()
    assert "until it stops" in here.words("cdrom", "eject", vm, "--live")
    assert nodes(here, vm) == {"disk0", "disk0-file"}
    assert here.path.joinpath("state/vms/cd/vm.yaml").read_text() == spec
    assert "from its next start" in here.words("cdrom", "eject", vm, "--config")
    assert "cdrom: ''" in here.path.joinpath("state/vms/cd/vm.yaml").read_text()
    here.run("kill", vm)


def test_what_is_no_cd_changes_nothing(
    here: Home, vm: str, boot_sector: Path, tmp_path: Path
) -> None:
    spec = here.path / "state/vms/cd/vm.yaml"
    before = spec.read_text()
    for wrong in (boot_sector, tmp_path / "nowhere.iso", tmp_path):
        here.words("cdrom", "insert", vm, wrong, check=1)
    assert spec.read_text() == before
    assert "not a CD image" in here.words(
        "create", "x", "--cdrom", boot_sector, check=1
    )
    assert "no CD to boot from" in here.words(
        "create", "y", "--image", "tiny", "--boot", "cdrom", check=1
    )
    here.run("create", "z", "--image", "tiny")
    assert "no CD-ROM drive" in here.words("cdrom", "eject", "z", check=1)


def test_a_vm_that_is_off_gets_its_medium_at_the_next_start(
    here: Home, vm: str, rescue: Path
) -> None:
    here.run("cdrom", "eject", vm)
    here.run("start", vm, "--boot", "cdrom", check=1)
    here.run("cdrom", "insert", vm, rescue)
    here.run("start", vm, "--boot", "cdrom")
    here.run("wait", vm, "--for", MENU)
    here.run("kill", vm)


def test_a_guest_that_uses_a_medium_is_asked_and_may_refuse(
    here: Home, rescue: Path
) -> None:
    """Linux locks the tray of a mounted disc."""
    here.run("create", "t", "--image", "tiny", "--cdrom", rescue, "--memory", "256M")
    here.run("start", "t", "--wait")
    here.run("exec", "t", "--", "mount", "-t", "iso9660", "/dev/sr0", "/mnt")
    words = here.words("cdrom", "eject", "t", check=1)
    assert "its guest is using it" in words
    assert here.text("exec", "t", "--", "ls", "/mnt/boot").strip() == "grub"
    here.run("exec", "t", "--", "umount", "/mnt")
    here.run("cdrom", "eject", "t")
    assert here.run("exec", "t", "--", "dd", "if=/dev/sr0", check=None).returncode
    here.run("cdrom", "insert", "t", rescue)
    here.run("exec", "t", "--", "mount", "-t", "iso9660", "/dev/sr0", "/mnt")
    here.run("cdrom", "eject", "t", "--force")
    assert "cdrom: ''" in here.path.joinpath("state/vms/t/vm.yaml").read_text()
    here.run("kill", "t")
