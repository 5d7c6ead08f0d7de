"""Disk images for tests: with content, overlays, writes as a guest does them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from qemuctl.image import qemu_img

MIB = 1 << 20
ODD = "a, b: c ünï -x"


def raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def qcow2(path: Path, data: bytes) -> Path:
    source = raw(path.with_suffix(".tmp"), data)
    qemu_img.run(
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        qemu_img.file(source),
        qemu_img.file(path),
    )
    source.unlink()
    return path


def overlay(path: Path, backing: Path, format: str) -> Path:
    qemu_img.run(
        "create", "-q", "-f", "qcow2", "-b", backing, "-F", format, qemu_img.file(path)
    )
    return path


def write(path: Path, offset: int, length: int, pattern: int) -> None:
    """Writes as a guest would."""
    subprocess.run(
        ["qemu-io", "--image-opts", qemu_img.options(path, "qcow2"), "-c",
         f"write -P {pattern} {offset} {length}"],
        check=True, capture_output=True,
    )  # fmt: skip


def content(path: Path, format: str = "qcow2") -> str:
    """A digest of what a guest sees."""
    out = path.with_name("content.tmp")
    qemu_img.run(
        "convert", "-f", format, "-O", "raw", qemu_img.file(path), qemu_img.file(out)
    )
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    out.unlink()
    return digest


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
