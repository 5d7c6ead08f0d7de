"""Which files the `image` commands take, refuse and protect, as their user has it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.guest.conftest import Home

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a, b: c ünï"
    path.mkdir()
    return path


@pytest.fixture
def stored(here: Home, folder: Path) -> Path:
    """The disk of an image in the store, called `mine`."""
    source = folder / "mine.qcow2"
    here.run("image", "create", source, "1M")
    here.run("image", "snapshot", "create", source, "one")
    here.run("image", "import", source)
    return here.path / "data" / "images" / "mine" / "disk.qcow2"


def test_an_image_is_looked_at_by_its_name_in_the_store(
    here: Home, stored: Path
) -> None:
    for command in ("info", "check", "map", "du"):
        assert here.text("image", command, "mine", "--json") == here.text(
            "image", command, stored, "--json"
        )
    (one,) = json.loads(here.text("image", "snapshot", "ls", "mine", "--json"))
    assert one["name"] == "one"
    assert "nobody writes to" in here.words(
        "image", "check", "--repair", "mine", check=1
    )


def test_nobody_writes_into_the_store_by_whatever_name(
    here: Home, stored: Path, folder: Path
) -> None:
    before = stored.read_bytes()
    hard, soft, way = folder / "hard.qcow2", folder / "soft.qcow2", folder / "way"
    hard.hardlink_to(stored)
    soft.symlink_to(stored)
    way.symlink_to(stored.parent)
    for words in (
        ["snapshot", "create", stored, "two"], ["commit", stored],
        ["rebase", "--flatten", stored], ["resize", hard, "2M"], ["resize", soft, "2M"],
        ["resize", way / stored.name, "2M"],
        ["convert", "--force", folder / "mine.qcow2", hard],
        ["convert", "--force", folder / "mine.qcow2", soft],
    ):  # fmt: skip
        told = here.words("image", *words, check=1)
        assert "nobody writes to an image in the store" in told
    for new in (stored.with_name("new.qcow2"), way / "new.qcow2"):
        for words in (["create", new, "1M"], ["convert", folder / "mine.qcow2", new]):
            told = here.words("image", *words, check=1)
            assert "nobody writes to" in told
            assert "qemuctl image import" in told
    assert stored.read_bytes() == before
    assert sorted(path.name for path in stored.parent.iterdir()) == [
        "disk.qcow2",
        "image.yaml",
    ]


def test_a_frozen_base_is_protected_by_another_name_too(
    here: Home, folder: Path
) -> None:
    bases = here.path / "state" / "kept" / "old"
    bases.mkdir(parents=True)
    base = bases / "disk0.base1.qcow2"
    here.run("image", "create", base, "1M")
    link = folder / "link.qcow2"
    link.hardlink_to(base)
    for file in (base, link):
        told = here.words("image", "resize", file, "2M", check=1)
        assert "disks are made from it" in told


def test_a_size_may_be_said_as_a_difference(here: Home, folder: Path) -> None:
    for disk in (folder / "disk.qcow2", folder / "disk.raw"):
        here.run("image", "create", disk, "4M")
        here.run("image", "resize", disk, "+1M")
        told = here.words("image", "resize", disk, "-2M", check=1)
        assert "3M instead of 5M" in told
        assert "--shrink" in told
        here.run("image", "resize", "--shrink", disk, "-2M")
        info = json.loads(here.text("image", "info", disk, "--json"))
        assert info["virtual_size"] == 3 * MIB
        assert "there is only 3M" in here.words("image", "resize", disk, "-3M", check=2)
        for wrong in ("+", "+-1M", "--1M", "1X"):
            here.words("image", "resize", disk, wrong, check=2)


def test_an_overlay_is_created_with_its_format_named(here: Home, folder: Path) -> None:
    base, odd = folder / "base.raw", folder / "base"
    base.write_bytes(os.urandom(MIB))
    odd.hardlink_to(base)
    top = folder / "top.qcow2"
    here.run("image", "create", top, "--backing", base)
    info = json.loads(here.text("image", "info", top, "--json"))
    assert info["virtual_size"] == MIB
    assert info["header"]["backing_format"] == "raw"
    assert [layer["path"] for layer in info["chain"]] == [str(top), str(base)]
    top.unlink()
    assert "--backing-format" in here.words(
        "image", "create", top, "--backing", odd, check=2
    )
    more = ["--backing", odd, "--backing-format"]
    here.run("image", "create", top, "2M", *more, "raw")
    assert json.loads(here.text("image", "info", top, "--json"))["virtual_size"] == (
        2 * MIB
    )
    other = folder / "other.qcow2"
    assert "not a qcow2 image" in here.words(
        "image", "create", other, *more, "qcow2", check=1
    )
    assert "has no backing file" in here.words(
        "image", "create", folder / "x.raw", *more, "raw", check=2
    )
    assert "give a size" in here.words("image", "create", other, check=2)
    assert not other.exists()


def test_what_lies_below_must_be_beside_or_a_base(
    here: Home, stored: Path, folder: Path
) -> None:
    elsewhere = folder / "below" / "x.qcow2"
    elsewhere.parent.mkdir()
    here.run("image", "create", elsewhere, "1M")
    for backing, trusted in ((stored, True), (elsewhere, False)):
        top, above = folder / "top.qcow2", folder / "above.qcow2"
        # Whom its user names himself needs no more trust; what that has below does.
        here.run("image", "create", top, "--backing", backing)
        for words in (
            ["create", above, "--backing", top],
            ["convert", top, above],
            ["rebase", folder / "mine.qcow2", top],
            ["rebase", "--flatten", top],
        ):
            told = here.words("image", *words, check=0 if trusted else 1)
            assert trusted or "--trust-backing" in told
            above.unlink(missing_ok=True)
        here.run("image", "rebase", "--flatten", folder / "mine.qcow2")
        top.unlink()


def test_a_vm_that_has_the_file_open_is_named(here: Home, folder: Path) -> None:
    # What `--disk` takes has no commas.
    folder = folder.rename(folder.with_name("folder"))
    base, disk = folder / "base.qcow2", folder / "disk.qcow2"
    other = folder / "other.raw"
    here.run("image", "create", base, "1M")
    here.run("image", "create", disk, "--backing", base)
    here.run("image", "snapshot", "create", disk, "one")
    other.write_bytes(bytes(MIB))
    here.run("create", "user", "--disk", f"path={disk}", "--trust-backing")
    here.run("start", "user")
    for words in (
        ["resize", disk, "+1M"], ["commit", disk],
        ["rebase", "--flatten", disk], ["rebase", "--unsafe", disk, other],
        ["snapshot", "create", disk, "two"], ["snapshot", "apply", disk, "one"],
        ["snapshot", "rm", disk, "one"],
        ["convert", disk, folder / "x.qcow2"], ["convert", "--force", other, disk],
        ["create", folder / "x.qcow2", "--backing", disk],
    ):  # fmt: skip
        told = here.words("image", *words, check=1)
        assert "is in use by another process" in told, words
        assert "the VM user has it open: qemuctl stop user" in told, words
    assert sorted(path.name for path in folder.iterdir()) == [
        "base.qcow2",
        "disk.qcow2",
        "other.raw",
    ]
    here.run("kill", "user")
