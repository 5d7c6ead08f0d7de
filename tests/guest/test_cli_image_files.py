"""`image create`, `info`, `convert` and others, as their user has them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest

from tests.guest.conftest import Home

ODD = "a, b: c ünï"
MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ODD
    path.mkdir()
    return path


def spawn(home: Home, *arguments: object) -> pexpect.spawn[str]:
    argv = home.command("image", *arguments)
    return pexpect.spawn(
        argv[0], argv[1:], env=home.env | {"TERM": "xterm"}, timeout=60,
        encoding="utf-8", dimensions=(24, 120),
    )  # fmt: skip


def qemu_imgs(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "qemu-img"
        and str(folder) in " ".join(process.info["cmdline"] or [])
    ]


@pytest.fixture
def large(folder: Path) -> Path:
    """A raw disk that takes seconds to compress."""
    path = folder / "large.raw"
    path.write_bytes(os.urandom(MIB) * 160)
    return path


def test_an_image_from_its_making_to_its_map(here: Home, folder: Path) -> None:
    disk = folder / "disk.qcow2"
    here.run("image", "create", disk, "64M")
    assert "there is a file already" in here.words(
        "image", "create", disk, "1G", check=1
    )
    here.run("image", "resize", disk, "128M")
    told = json.loads(here.text("image", "info", disk, "--json"))
    assert told["virtual_size"] == 128 * MIB
    assert told["flags"] == ["untouched"]
    here.run("image", "snapshot", "create", disk, "one")
    (one,) = json.loads(here.text("image", "snapshot", "ls", disk, "--json"))
    assert one["name"] == "one"
    here.run("image", "snapshot", "apply", disk, "one")
    here.run("image", "snapshot", "rm", disk, "one")
    assert here.text("image", "check", disk) == "clean:  yes\n"
    (extent,) = json.loads(here.text("image", "map", disk, "--json"))
    assert (extent["length"], extent["data"]) == (128 * MIB, False)
    assert ODD in here.text("image", "du", disk)
    assert list(folder.iterdir()) == [disk]


def test_a_chain_is_shown_as_a_tree_and_made_one_file(here: Home, folder: Path) -> None:
    base, top, flat = (
        folder / name for name in ("base.raw", "top.qcow2", "flat.qcow2")
    )
    base.write_bytes(os.urandom(MIB))
    here.run("image", "create", top, "1M")
    here.run("image", "rebase", "--unsafe", top, base)
    text = here.text("image", "info", top)
    assert f"└─ {base} (raw, 1M, " in text
    here.run("image", "convert", top, flat)
    assert json.loads(here.text("image", "info", flat, "--json"))["chain"][1:] == []
    (used,) = json.loads(here.text("image", "du", top, "--json"))
    assert used["allocated"] == [0, MIB]
    here.run("image", "commit", top)
    here.run("image", "rebase", "--flatten", top)
    base.unlink()
    here.run("image", "rebase", "--unsafe", top, flat)
    flat.unlink()
    words = here.words("image", "info", top, check=1)
    assert f"the disk image does not exist: {flat}" in words
    assert "qemuctl image rebase" in words


def test_formats_are_named_and_not_guessed_when_something_is_written(
    here: Home, folder: Path
) -> None:
    disk = folder / "disk.img"
    assert "which format" in here.words("image", "create", disk, "1M", check=2)
    here.run("image", "create", disk, "1M", "--format", "qcow2")
    assert "--from" in here.words("image", "convert", disk, folder / "x", check=2)
    done = here.run("image", "info", disk)
    assert b"read as qcow2, by how it begins" in done.stderr
    assert b"qcow2 (version 3)" in done.stdout
    disguised = disk.rename(folder / "disk.raw")
    target = folder / "x.qcow2"
    assert "said to be raw" in here.words(
        "image", "convert", disguised, target, check=1
    )
    assert list(folder.iterdir()) == [disguised]


def test_a_backing_file_elsewhere_is_copied_only_with_trust(
    here: Home, folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"secret".ljust(512, b"."))
    top, out = folder / "top.qcow2", folder / "out.raw"
    here.run("image", "create", top, "512")
    here.run("image", "rebase", "--unsafe", top, secret)
    for words in (["convert", top, out], ["commit", top]):
        told = here.words("image", *words, check=1)
        assert str(secret) in told
        assert "--trust-backing" in told
    assert list(folder.iterdir()) == [top]
    here.run("image", "convert", "--trust-backing", top, out)
    assert out.read_bytes() == secret.read_bytes()


def test_what_is_wrong_gives_status_1_and_is_repaired(here: Home, folder: Path) -> None:
    source, disk = folder / "source.raw", folder / "disk.qcow2"
    source.write_bytes(os.urandom(MIB))
    here.run("image", "convert", source, disk)
    raw = bytearray(disk.read_bytes())
    last = len(raw) // 65536 - 1
    raw[131072 + 2 * last + 1] = 2
    disk.write_bytes(raw)
    done = here.run("image", "check", disk, check=1)
    assert b"leaks" in done.stdout
    assert b"image check --repair" in done.stderr
    assert "leaks fixed" in here.text("image", "check", "--repair", disk)
    assert "nothing that could be checked" in here.words(
        "image", "check", source, check=2
    )


def test_shrinking_asks_on_a_terminal_and_is_refused_in_a_pipe(
    here: Home, folder: Path
) -> None:
    disk = folder / "disk.raw"
    disk.write_bytes(bytes(2 * MIB))
    assert "--shrink" in here.words("image", "resize", disk, "1M", check=1)
    for answer, status, size in (("n", 1, 2 * MIB), ("y", 0, MIB)):
        asked = spawn(here, "resize", disk, "1M")
        asked.expect("what lies there is lost")
        asked.sendline(answer)
        asked.expect(pexpect.EOF)
        asked.close()
        assert asked.exitstatus == status
        assert disk.stat().st_size == size


def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(
    here: Home, large: Path, until: Any
) -> None:
    target = large.with_name("target.qcow2")
    shown = spawn(here, "convert", "--compress", large, target)
    shown.expect("converting large.raw")
    shown.expect(r"[1-9]\d?%")
    shown.expect(pexpect.EOF)
    shown.close()
    assert shown.exitstatus == 0
    # The bar is gone at the end.
    assert shown.before.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))
    done = here.run("image", "convert", "--force", target, target.with_name("x.raw"))
    assert (done.stdout, done.stderr) == (b"", b"")


def test_an_interrupted_conversion_leaves_nothing_but_what_was_there(
    here: Home, large: Path
) -> None:
    target = large.with_name("target.qcow2")
    target.write_bytes(b"old")
    shown = spawn(here, "convert", "--compress", "--force", large, target)
    shown.expect(r"[1-9]\d?%")
    assert len(qemu_imgs(large.parent)) == 1
    shown.sendintr()
    shown.expect(pexpect.EOF)
    shown.close()
    assert shown.exitstatus == 130
    assert "Traceback" not in shown.before
    assert qemu_imgs(large.parent) == []
    assert target.read_bytes() == b"old"
    assert sorted(large.parent.iterdir()) == sorted([large, target])
