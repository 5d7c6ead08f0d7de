"""A file that does not fit is refused with the reason, and stays as it is."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuctl.registry.saved_state import START, digest
from tests.guest.conftest import Home
from tests.guest.saves import flip, forge, row, says


@pytest.fixture(scope="module")
def state(
    shared: Home, counting: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A guest that is in a file, and nowhere else."""
    file = tmp_path_factory.mktemp("state") / "web.state"
    shared.run("save", "web", file)
    yield file
    shared.run("restore", file)


@pytest.fixture
def copy(shared: Home, state: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, which is not restored and stays as it is."""
    file = tmp_path / "copy.state"
    shutil.copyfile(state, file)
    yield file
    assert row(shared, "web")["state"] == "off"
    assert shared.text("ls", "-a", "-q").split() == ["web"]


def refused(home: Home, file: Path, *options: str) -> str:
    before = file.read_bytes()
    words = home.words("restore", file, *options, check=1)
    assert file.read_bytes() == before
    return words


def test_a_damaged_file_is_refused(shared: Home, copy: Path) -> None:
    wrong = "the checksum of its state is wrong"
    flip(copy, copy.stat().st_size // 2)
    assert wrong in refused(shared, copy)
    assert wrong in refused(shared, copy, "--name", "new")
    # Here QEMU ends at its first byte, and the reason is told all the same.
    flip(copy, START + 2)
    assert wrong in refused(shared, copy)


def test_a_truncated_file_is_refused(shared: Home, copy: Path) -> None:
    os.truncate(copy, copy.stat().st_size // 2)
    assert "it has been cut short" in refused(shared, copy)


def test_a_foreign_file_is_refused(shared: Home, copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[START:])  # what QEMU itself would take
    assert "not a saved machine" in refused(shared, copy)


def test_what_qemu_cannot_read_is_refused_in_its_words(
    shared: Home, copy: Path
) -> None:
    flip(copy, START + 2)
    with copy.open("rb") as file:
        file.seek(START)
        sum_ = digest(file)
    forge(copy, lambda about: about | {"sha256": sum_})
    words = refused(shared, copy)
    assert re.search(r"QEMU [\d.]+ cannot read the saved state \(of [\d.]+\):", words)
    assert "Not a migration stream" in words


def test_a_machine_that_this_qemu_lacks_is_refused(shared: Home, copy: Path) -> None:
    forge(copy, lambda about: about | {
        "qemu": "99.1.0", "shape": about["shape"] | {"machine": "pc-q35-99.1"},
    })  # fmt: skip
    words = refused(shared, copy)
    assert "with the state of a QEMU 99.1.0: it has no machine pc-q35-99.1" in words


def test_a_machine_that_would_be_another_is_refused(shared: Home, copy: Path) -> None:
    forge(copy, lambda about: about | {
        "devices": about["devices"] | {"tablet": "usb-tablet"},
    })  # fmt: skip
    assert "tablet: usb-tablet then, none now" in refused(shared, copy)


def test_a_changed_disk_is_refused(shared: Home, copy: Path) -> None:
    disk = next((shared.path / "state/vms/web/disks").iterdir())
    times = disk.stat().st_atime_ns, disk.stat().st_mtime_ns
    os.utime(disk)
    words = refused(shared, copy)
    assert f"its disk disk0 has been changed since: {disk}" in words
    assert "has been changed since" in refused(shared, copy, "--name", "new")
    disk.rename(disk.with_suffix(".away"))
    assert "cannot be read" in refused(shared, copy)
    disk.with_suffix(".away").rename(disk)
    os.utime(disk, ns=times)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"extra_args": ["-drive", "file=/etc/hostname,format=raw"]}, "extra_args"),
        ({"sandbox": False}, "sandbox"),
        ({"cdrom": "/etc/hostname"}, "cdrom"),
        ({"boot": {"kernel": "/etc/hostname"}}, "boot"),
        ({"disks": [{"path": "/etc/hostname", "format": "raw"}]}, "disks"),
        ({"disks": [{"path": "vm.yaml", "format": "raw"}]}, "disks"),
        # A disk of the VM that the file does not know by size and time.
        ({"disks": [{"size": "64M", "id": "disk9"}]}, "home"),
        ({"nics": [{"type": "tap", "ifname": "tap0"}]}, "nics"),
    ],
)
def test_a_file_that_no_vm_here_has_written_keeps_to_the_vm(
    shared: Home, copy: Path, change: dict[str, Any], key: str
) -> None:
    says(copy, **change)
    for options in ([], ["--name", "new"]):
        words = refused(shared, copy, *options)
        assert f"{copy}: {key}: leads outside of the VM" in words
        assert "--trust" in words


def test_nothing_that_a_file_names_is_run_before_it_is_trusted_and_whole(
    shared: Home, copy: Path, tmp_path: Path
) -> None:
    qemu, ran = tmp_path / "qemu", tmp_path / "ran"
    qemu.write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    qemu.chmod(0o755)
    says(copy, qemu=str(qemu))
    assert "qemu: leads outside of the VM" in refused(shared, copy)
    assert not ran.exists()
    flip(copy, copy.stat().st_size // 2)
    for option in (["--trust"], []):
        assert "checksum of its state is wrong" in refused(shared, copy, *option)
    assert not ran.exists()
    flip(copy, copy.stat().st_size // 2)
    assert f"cannot use this QEMU: {qemu}" in refused(shared, copy, "--trust")
    assert ran.exists()


def test_a_new_vm_takes_nothing_from_a_folder_that_a_file_names(
    shared: Home, copy: Path
) -> None:
    forge(copy, lambda about: about | {"saved_at": 0.0})
    words = refused(shared, copy, "--name", "new")
    assert "home: leads outside of the VM" in words
