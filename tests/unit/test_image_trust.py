"""Where backing files may lie, and what nobody writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemuctl import paths
from qemuctl.errors import ImageError
from qemuctl.image.trust import check_origin, in_store, is_base, known_as
from tests.unit.disk_images import MIB, overlay, qcow2


@pytest.fixture
def folder(bare_home: Path, tmp_path: Path) -> Path:
    path = tmp_path / "a, b: c ünï"
    path.mkdir()
    return path


def at(*names: str) -> Path:
    """A small image in the home of the test."""
    kind, *more, name = names
    roots = {"image": paths.images_dir, "vm": paths.vms_dir, "kept": paths.kept_dir}
    where = roots[kind]().joinpath(*more)
    where.mkdir(parents=True, exist_ok=True)
    return qcow2(where / name, bytes(MIB))


BASES = [
    ("image", "debian", "disk.qcow2"),
    ("vm", "db", "disks", "disk0.base1.qcow2"),
    ("kept", "db", "disk12.base3.qcow2"),
]
OTHERS = [
    ("vm", "db", "disks", "disk0.qcow2"),
    ("vm", "db", "disk0.base1.qcow2"),
    ("vm", "db", "disks", "Odd.base1.qcow2"),
    ("kept", "db", "disk0.qcow2"),
]


@pytest.mark.parametrize("names", [*BASES, *OTHERS])
def test_below_is_a_base_or_needs_trust(folder: Path, names: tuple[str, ...]) -> None:
    top = overlay(folder / "top.qcow2", at(*names), "qcow2")
    if names in BASES:
        check_origin(top, "qcow2")
        return
    with pytest.raises(ImageError, match="lies elsewhere") as caught:
        check_origin(top, "qcow2")
    assert "--trust-backing" in (caught.value.hint or "")
    check_origin(top, "qcow2", trust_backing=True)


def test_below_is_a_file_beside_it_and_not_further_down(folder: Path) -> None:
    below = folder / "below"
    below.mkdir()
    for backing in (folder / "base.qcow2", below / "base.qcow2"):
        top = overlay(folder / "top.qcow2", qcow2(backing, bytes(MIB)), "qcow2")
        if backing.parent == folder:
            check_origin(top, "qcow2")
            continue
        with pytest.raises(ImageError, match="lies elsewhere"):
            check_origin(top, "qcow2")
    link = folder / "link.qcow2"
    link.symlink_to(below / "base.qcow2")
    with pytest.raises(ImageError, match="lies elsewhere"):
        check_origin(overlay(folder / "other.qcow2", link, "qcow2"), "qcow2")


@pytest.mark.parametrize("names", BASES)
def test_a_base_is_known_by_every_name(folder: Path, names: tuple[str, ...]) -> None:
    base = at(*names)
    hard, soft = folder / "hard", folder / "soft"
    hard.hardlink_to(base)
    soft.symlink_to(hard)
    for path in (base, hard, soft):
        assert known_as(path) == base
        assert is_base(known_as(path))
    for path in (qcow2(folder / "own", bytes(MIB)), folder / "none"):
        assert known_as(path) == path
        assert not is_base(path)


def test_a_new_file_in_the_store_is_told_wherever_links_lead(folder: Path) -> None:
    disk = at(*BASES[0])
    way = folder / "way"
    way.symlink_to(disk.parent)
    for path in (disk, disk.with_name("new"), way / "new", way / "no" / "new"):
        assert in_store(path)
    assert not in_store(folder / "new")
    assert not in_store(paths.images_dir().with_name("images2") / "x")
