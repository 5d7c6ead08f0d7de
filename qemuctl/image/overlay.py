"""Disks of a VM: new ones, and overlays on images that nobody may write to."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Literal

from qemuctl.errors import ImageError
from qemuctl.image import qemu_img
from qemuctl.image.chain import chain
from qemuctl.image.locks import check_unused
from qemuctl.image.qcow2 import is_qcow2, read_header
from qemuctl.image.recognise import other_kind, recognised
from qemuctl.image.whole import sweep, whole
from qemuctl.units import format_size

Format = Literal["qcow2", "raw"]
# Each file of a chain costs every start and every first read; QEMU has no limit.
_DEEPEST = 50


def check_format(path: Path, format: Format) -> None:
    """Raises ImageError unless the file can be read and is what it is said to be.

    A raw image that begins like a qcow2 one is refused: its guest could have
    written that header to reach files of the host through a backing file.
    """
    found = is_qcow2(path)
    if format == "qcow2" and not found:
        kind = recognised(path)
        if kind is not None:
            raise other_kind("a qcow2 image", path, kind)
        raise ImageError(f"not a qcow2 image: {path}", hint="is it raw? say so: format")
    if format == "raw" and found:
        raise ImageError(
            f"said to be raw, but it has a qcow2 header: {path}",
            hint="a guest may have written that header, to reach files of this host",
        )


def create_overlay(
    path: Path, backing: Path, format: Format, size: int | None = None
) -> None:
    """Makes a qcow2 overlay on ``backing``, which is of ``format``.

    ``size`` in bytes is what a guest sees, by default as much as in
    ``backing``. A backing file without a folder lies beside the overlay.
    Raises ImageError, also when ``backing`` is not of that format.
    """
    check_format(path.parent / backing, format)
    # Names without a folder are ours, and hold no colon to be misunderstood.
    name = f"file:{backing}" if backing.is_absolute() else str(backing)
    # Not waited for until it is on the disk: neither is the VM it belongs to, and
    # a throwaway one is to start at once.
    with whole(path) as fresh:
        qemu_img.run(
            "create", "-q", "-f", "qcow2", "-b", name, "-F", format,
            f"file:{fresh}", *([str(size)] if size is not None else []),
        )  # fmt: skip


def freeze(path: Path) -> Path:
    """Makes what a qcow2 disk holds now a file that others can be made from.

    The disk becomes an overlay on that file, which lies beside it; nobody
    writes to it any more. A disk that was not written to since the last time
    already is one. At no moment is the disk's name without its content.

    Raises ImageInUse, and ImageError: also for snapshots in it, which would go
    out of reach, and for a chain that is too long.
    """
    header = read_header(path)
    check_unused(path)
    if header.snapshots:
        raise ImageError(
            f"its snapshots would go out of reach: {path}",
            hint="make a full clone, or remove them: qemuctl image snapshot ls",
        )
    if header.untouched and header.backing_file in _bases(path):
        sweep(path.parent)  # of whoever was killed once it was frozen
        return path.parent / header.backing_file
    if len(chain(path, "qcow2")) > _DEEPEST:
        raise ImageError(
            f"made of more than {_DEEPEST} files, one upon the other: {path}",
            hint="make a full clone, or give the disk one file: "
            f"qemuctl image rebase {path} --flatten",
        )
    number = len(_bases(path)) + 1
    base = path.with_name(f"{path.stem}.base{number}.qcow2")
    # Two names for one file, until the overlay takes the place of the first.
    try:
        base.hardlink_to(path)
    except OSError as error:
        raise ImageError(
            f"cannot make another name for {path}: {error.strerror}",
            hint="this file system may have no hard links; a full clone needs none",
        ) from error
    try:
        with whole(path, replace=True) as fresh:
            create_overlay(fresh, Path(base.name), "qcow2", header.virtual_size)
            check_unused(path)
    except BaseException:
        # Once the overlay is in its place, this is the only name of the content.
        if path.samefile(base):
            base.unlink()
        raise
    base.chmod(0o400)
    return base


def _bases(path: Path) -> list[str]:
    """The files that were frozen from a disk, in this order."""
    found = path.parent.glob(f"{glob.escape(path.stem)}.base*.qcow2")
    return sorted((base.name for base in found), key=lambda name: (len(name), name))


def create_disk(path: Path, format: Format, size: int) -> None:
    """Makes an empty disk, whole or not at all. Raises ImageError."""
    with whole(path) as fresh:
        try:
            qemu_img.create(fresh, format, size)
        except ImageError as error:
            error.hint = error.hint or f"it was to hold {format_size(size)}: {path}"
            raise
