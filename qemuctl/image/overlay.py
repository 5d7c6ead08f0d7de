"""Disks of a VM: new ones, and overlays on images that nobody may write to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from qemuctl.errors import ImageError
from qemuctl.image import qemu_img
from qemuctl.units import format_size

_QCOW2_MAGIC = b"QFI\xfb"
Format = Literal["qcow2", "raw"]


def check_format(path: Path, format: Format) -> None:
    """Raises ImageError unless the file can be read and is what it is said to be.

    A raw image that begins like a qcow2 one is refused: its guest could have
    written that header to reach files of the host through a backing file.
    """
    qemu_img.check_readable(path, "the disk image")
    with path.open("rb") as file:
        is_qcow2 = file.read(4) == _QCOW2_MAGIC
    if format == "qcow2" and not is_qcow2:
        raise ImageError(f"not a qcow2 image: {path}", hint="is it raw? say so: format")
    if format == "raw" and is_qcow2:
        raise ImageError(
            f"said to be raw, but it has a qcow2 header: {path}",
            hint="if it is meant to be qcow2, say format: qcow2",
        )


def create_overlay(path: Path, backing: Path, format: Format) -> None:
    """Makes a qcow2 overlay on ``backing``, which is of ``format``.

    Raises ImageError, also when ``backing`` is not of that format.
    """
    check_format(backing, format)
    with _whole(path) as fresh:
        qemu_img.run(
            "create", "-q", "-f", "qcow2", "-b", f"file:{backing}", "-F", format,
            f"file:{fresh}",
        )  # fmt: skip


def create_disk(path: Path, format: Format, size: int) -> None:
    """Makes an empty disk, whole or not at all. Raises ImageError."""
    with _whole(path) as fresh:
        try:
            qemu_img.create(fresh, format, size)
        except ImageError as error:
            error.hint = error.hint or f"it was to hold {format_size(size)}: {path}"
            raise


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to make a file under, which then takes its place as a whole."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        yield fresh
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
