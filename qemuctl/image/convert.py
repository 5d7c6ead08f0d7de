"""An image in another format, or flattened: `qemu-img convert`, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from qemuctl.errors import ImageError, UsageError
from qemuctl.image import qemu_img
from qemuctl.image.chain import Layer, Untrusted, check_trusted
from qemuctl.image.complete import check_complete
from qemuctl.image.limits import reading
from qemuctl.image.locks import check_unwritten, unshared
from qemuctl.image.progress import Progress, silent
from qemuctl.image.qcow2 import open_image
from qemuctl.image.whole import whole

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc")
_COMPRESSES = ("qcow2", "vmdk")


async def convert(
    source: Path,
    target: Path,
    *,
    source_format: str,
    format: str,
    compress: bool = False,
    progress: Progress = silent,
    replace: bool = False,
    trust_backing: bool = False,
) -> None:
    """Writes what a guest sees of ``source`` to ``target``: one file, no backing.

    ``target`` appears as a whole, and only ``replace`` lets it take the place of
    another file; that one is kept until the new one is on the disk, and no QEMU can
    open it meanwhile. A file that replaces nothing is not waited for: it is no safer
    than its source. Holes stay holes.

    Raises UsageError for a format that is unknown or cannot be compressed,
    ImageError when ``target`` exists or is one of the files that are read, and when
    one of those is cut short or corrupt; ImageInUse when a VM writes to one of them
    or has ``target`` open; and what `chain` raises.
    """
    _check_formats(source_format, format, compress)
    layers = readable(source, source_format, trust_backing=trust_backing)
    await _check_layers(layers)
    more = ["-c", *(["-W"] if format == "qcow2" else [])] if compress else []
    more += ["-o", "subformat=streamOptimized"] if _streamed(format, compress) else []
    # What the foreign readers believe of a file, nobody has looked at before.
    known = source_format in ("qcow2", "raw")
    limits = None if known else reading(layers[0].file_size)
    replaced = replace and target.exists()
    with (
        _kept_from_others(target, layers) if replaced else nullcontext(),
        whole(target, replace=replaced) as fresh,
    ):
        await qemu_img.job(
            "convert", "-f", source_format, "-O", format, *more,
            qemu_img.file(source), qemu_img.file(fresh),
            progress=progress, limits=limits, writes=target,
        )  # fmt: skip


async def _check_layers(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if layer.remote is None:
            check_unwritten(layer.path)
            if layer.format == "qcow2":
                await check_complete(layer.path)


def _check_formats(source_format: str, format: str, compress: bool) -> None:
    for name in (source_format, format):
        if name not in FORMATS:
            raise UsageError(f"unknown format: {name}", hint=", ".join(FORMATS))
    if compress and format not in _COMPRESSES:
        raise UsageError(
            f"there is no compression in: {format}", hint=", ".join(_COMPRESSES)
        )


def readable(
    source: Path, format: str, *, trust_backing: bool = False
) -> Sequence[Layer]:
    """The files that QEMU would read for an image of any of `FORMATS`.

    Raises ImageError as `chain` does, unless ``trust_backing``.
    """
    if format in ("qcow2", "raw"):
        everywhere = [Path("/")]
        return check_trusted(
            source, format, inside=everywhere, trust_backing=trust_backing
        )
    with open_image(source) as file:
        beginning = file.read(_DESCRIPTOR_END)
        size = file.seek(0, 2)
    if format == "vmdk" and not trust_backing:
        _check_vmdk(source, beginning)
    return [Layer(source, format, 0, size, 0)]


# block/vmdk.c reads the descriptor of an image, with its parent, from here.
_DESCRIPTOR, _DESCRIPTOR_SIZE = 0x200, 20 * 512
_DESCRIPTOR_END = _DESCRIPTOR + _DESCRIPTOR_SIZE


def _check_vmdk(path: Path, beginning: bytes) -> None:
    """Refuses a VMDK that has QEMU open other files: a text file that lists them,
    also one within (capacity 0), and one that names a parent."""
    capacity = beginning[12:20]
    one_file = beginning[:4] == b"COWD" or (
        beginning[:4] == b"KDMV" and capacity != bytes(8)
    )
    descriptor = beginning[_DESCRIPTOR:]
    if not one_file or b"parentfilenamehint" in descriptor.lower():
        raise Untrusted(
            f"not a VMDK image of one file: {path}",
            hint="if you trust who made the image: --trust-backing",
        )


def _streamed(format: str, compress: bool) -> bool:
    # The one kind of VMDK that qemu-img compresses.
    return compress and format == "vmdk"


@contextmanager
def _kept_from_others(target: Path, layers: Sequence[Layer]) -> Iterator[None]:
    """For the block, a file that is about to be replaced; raises ImageError when it
    is needed."""
    for layer in layers:
        if layer.remote is None and layer.path.samefile(target):
            raise ImageError(f"the target is one of the files that are read: {target}")
    # A rename takes a running VM's disk away under it, whatever locks it holds.
    with unshared(target):
        yield
