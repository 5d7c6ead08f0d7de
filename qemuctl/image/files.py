"""Image files made and changed: new ones, their size, what lies below them.

A file that is written to is opened by QEMU together with its backing files, so
each function looks at the whole chain first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qemuctl.errors import ImageError, UsageError
from qemuctl.image import qemu_img
from qemuctl.image.chain import Layer, chain, refuse_data_file
from qemuctl.image.locks import check_unwritten
from qemuctl.image.progress import Progress, silent
from qemuctl.image.whole import whole
from qemuctl.units import format_size

PREALLOCATION = {
    "qcow2": ("off", "metadata", "falloc", "full"),
    "raw": ("off", "falloc", "full"),
}


async def create(
    path: Path,
    size: int | None,
    format: str,
    preallocation: str | None = None,
    *,
    backing: Path | None = None,
    backing_format: str | None = None,
) -> None:
    """Makes an empty image of ``size`` bytes, whole or not at all.

    ``preallocation`` takes its room at once, as qemu-img's option of that name.
    With ``backing`` it is an overlay on that file, by default of its size.
    Raises UsageError for a format or preallocation that there is not, for what
    cannot have a backing file, or a backing file without format; ImageError when the
    file exists or there is no room, and what `chain` raises; ImageInUse when a VM
    writes to the backing file.
    """
    if format not in PREALLOCATION:
        raise UsageError(f"unknown format: {format}", hint=", ".join(PREALLOCATION))
    if preallocation not in (None, *PREALLOCATION[format]):
        raise UsageError(
            f"no such preallocation of {format}: {preallocation}",
            hint=", ".join(PREALLOCATION[format]),
        )
    more = ["-o", f"preallocation={preallocation}"] if preallocation else []
    if backing is not None:
        if preallocation not in (None, "off"):
            raise UsageError("there is no preallocation of an image on a backing file")
        below = _checked_backing(path, format, backing, backing_format)
        size = below.virtual_size if size is None else size
        more += _below(below.path, below.format)
    if size is None:
        raise UsageError(f"the size is missing: {path}")
    with whole(path) as fresh:
        await qemu_img.job(
            "create", "-q", "-f", format, *more, qemu_img.file(fresh), str(size),
            writes=path,
        )  # fmt: skip


def _checked_backing(
    path: Path, format: str, backing: Path, backing_format: str | None
) -> Layer:
    layers = chain(backing, _format_below(path, format, backing, backing_format))
    for layer in layers:
        # QEMU itself would let it be, below a raw one.
        check_unwritten(layer.path)
    return layers[0]


def _format_below(
    path: Path, format: str, backing: Path, backing_format: str | None
) -> str:
    if format != "qcow2":
        raise UsageError(f"a {format} image has no backing file: {path}")
    if backing_format is None:
        raise UsageError(f"the format of the backing file is missing: {backing}")
    return backing_format


def _below(backing: Path, format: str) -> list[str]:
    # An absolute name is never taken for a protocol; without `file:`, for other
    # programs read it too.
    return ["-b", str(backing.absolute()), "-F", format]


async def resize(path: Path, format: str, size: int, *, shrink: bool = False) -> None:
    """Gives an image another size, in bytes; the guest's partitions stay as they are.

    Making it smaller cuts off what lies behind, and needs ``shrink``. Raises
    ImageError without it, and when qemu-img refuses, as for a qcow2 file of version 2
    with snapshots; ImageInUse while a VM runs on it.
    """
    before = chain(path, format)[0].virtual_size
    if size < before and not shrink:
        raise ImageError(
            f"smaller than the image is, {format_size(size)} instead of "
            f"{format_size(before)}: {path}",
            hint="to cut off its end, with what lies there: --shrink",
        )
    more = ["--shrink"] if shrink else []
    await qemu_img.job(
        "resize", "-q", "-f", format, *more, qemu_img.file(path), str(size),
        writes=path,
    )  # fmt: skip


async def rebase(
    path: Path,
    format: str,
    backing: Path | None,
    backing_format: str | None,
    *,
    unsafe: bool = False,
    progress: Progress = silent,
) -> None:
    """Puts another backing file below an image, or none: all data in one file.

    The guest sees the same as before: what differs is copied into the image.
    ``unsafe`` only writes the name down, for a backing file that has moved; then
    the old one need not be there. A failure, also for lack of room, leaves the
    image as usable as it was.

    Raises UsageError for what cannot have a backing file, or a backing file
    without format; ImageError when the files are not what they are said to be, or
    the image would be below itself; ImageInUse while a VM runs on it.
    """
    if format != "qcow2":
        raise UsageError(f"a {format} image has no backing file: {path}")
    if unsafe:
        refuse_data_file(path)
    else:
        chain(path, format)
    below = ["-b", ""]
    if backing is not None:
        kind = _format_below(path, format, backing, backing_format)
        _check_not_below(path, backing, kind)
        below = _below(backing, kind)
    await qemu_img.job(
        "rebase", "-f", format, *(["-u"] if unsafe else []), *below,
        qemu_img.file(path),
        progress=progress, writes=path,
    )  # fmt: skip


def _check_not_below(path: Path, backing: Path, format: str) -> None:
    for layer in chain(backing, format):
        if layer.path.samefile(path):
            raise ImageError(f"it would be its own backing file: {path}")


async def commit(
    path: Path,
    format: str,
    progress: Progress = silent,
    *,
    protected: Sequence[Path] = (),
) -> None:
    """Writes what an overlay holds into its backing file; then the overlay is empty.

    Other overlays on the same file are spoilt by that. A failure on the way loses
    nothing: the overlay still holds it all.

    Raises ImageError when there is no backing file or it lies in one of the
    folders ``protected``, wherever links lead; ImageInUse while a VM runs on it.
    """
    layers = chain(path, format)
    if len(layers) < 2:
        raise ImageError(f"it has no backing file: {path}")
    backing = layers[1].path
    where = backing.resolve()
    for folder in protected:
        if where.is_relative_to(folder.resolve()):
            raise ImageError(
                f"its backing file is an image that others share: {backing}",
                hint="a file of its own: qemuctl image convert",
            )
    await qemu_img.job(
        "commit", "-f", format, qemu_img.file(path), progress=progress, writes=backing
    )
