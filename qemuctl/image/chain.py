"""An image and the files below it, found without QEMU opening any of them.

A qcow2 file names its backing file, and whoever made the file chose the name:
`/etc/shadow`, a pipe, a server to connect to. So the names are followed by our
own reader, and an image is opened by QEMU only after all of its layers are known.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.image.qcow2 import Header, is_qcow2, open_image, read_header
from qemuctl.structs import Struct

DEEPEST = 200


class Layer(Struct, kw_only=False):
    """One file of a chain; sizes in bytes.

    ``used`` is what the file takes on the disk. ``remote`` is set only in a chain
    that is trusted: a name that QEMU would open and that is not a file's, where
    the chain ends as far as we can see.
    """

    path: Path
    format: str
    virtual_size: int
    file_size: int
    used: int
    remote: str | None = None


def chain(path: Path, format: str) -> list[Layer]:
    """An image of ``format`` (qcow2 or raw) and its backing files, top first.

    Opens files for reading only, and nothing but files. Raises ImageError for a
    chain that is cyclic, too deep or incomplete, for a backing file without a
    format, a name that is not a file's, an external data file, and for a raw
    layer with a qcow2 header.
    """
    return _follow(path, format, trusted=False)


def check_trusted(
    path: Path, format: str, *, inside: Sequence[Path], trust_backing: bool = False
) -> list[Layer]:
    """The chain of an image that somebody else made; top first.

    Raises ImageError, besides what `chain` raises, when a backing file lies
    outside all folders of ``inside``, wherever links lead. ``trust_backing``
    allows all that QEMU would open.
    """
    try:
        layers = _follow(path, format, trusted=trust_backing)
    except Untrusted as error:
        error.hint = error.hint or "if you trust who made the image: --trust-backing"
        raise
    folders = [folder.resolve() for folder in inside]
    for overlay, layer in itertools.pairwise(layers):
        where = layer.path.resolve()
        if not trust_backing and not any(map(where.is_relative_to, folders)):
            raise Untrusted(
                f"the backing file of {overlay.path} lies elsewhere: {where}",
                hint="if you trust who made the image: --trust-backing",
            )
    return layers


class Untrusted(ImageError):
    """An image names something that QEMU would open and we do not follow."""


def has_protocol(name: str) -> bool:
    """Whether QEMU takes a name for more than a path (block.c, path_has_protocol):
    there is a colon, and no slash before it."""
    return ":" in name.partition("/")[0]


def _follow(path: Path, format: str, *, trusted: bool) -> list[Layer]:
    layers: list[Layer] = []
    seen: set[tuple[int, int]] = set()
    kind = format
    while True:
        layer, header, identity = _layer(path, kind, layers)
        if identity in seen:
            raise ImageError(
                f"the chain of backing files is cyclic: {layers[-1].path} has "
                f"{path} below it, which is above it too",
                hint="give one of them another: qemuctl image rebase --unsafe",
            )
        seen.add(identity)
        layers.append(layer)
        if header is None:
            return layers
        if not trusted:
            _check_data_file(path, header)
        if header.backing_file is None:
            return layers
        if len(layers) > DEEPEST:
            raise ImageError(
                f"more than {DEEPEST} backing files: {layers[0].path}",
                hint="give one in the middle no backing file: "
                f"qemuctl image rebase --flatten {layers[DEEPEST // 2].path}",
            )
        below = backing_path(path, header.backing_file)
        if below is None or (trusted and not _followed(header.backing_format)):
            return [*layers, _unseen(path, header, trusted)]
        kind = _backing_format(path, header, below, trusted)
        path = below


def refuse_data_file(path: Path) -> None:
    """Raises ImageError for a qcow2 file that has QEMU open an external data file,
    even where no backing file is opened, and for one that is not qcow2."""
    _check_data_file(path, read_header(path))


def _check_data_file(path: Path, header: Header) -> None:
    if header.data_file is not None:
        raise Untrusted(
            f"the data of {path} is in another file: {header.data_file or '?'}"
        )


def _layer(
    path: Path, format: str, above: Sequence[Layer]
) -> tuple[Layer, Header | None, tuple[int, int]]:
    """One file as a layer, its header, and what tells it from other files."""
    try:
        with open_image(path) as file:
            status = os.fstat(file.fileno())
            size = file.seek(0, os.SEEK_END)
        header = _header(path, format)
    except ImageError as error:
        if above:
            error.message = f"the backing file of {above[-1].path}: {error.message}"
            error.hint = "\n".join(filter(None, [error.hint, _REBASE]))
        raise
    virtual_size = header.virtual_size if header else size
    layer = Layer(path, format, virtual_size, size, status.st_blocks * 512)
    return layer, header, (status.st_dev, status.st_ino)


_REBASE = "name another backing file: qemuctl image rebase --unsafe OVERLAY BACKING"


def _header(path: Path, format: str) -> Header | None:
    if format == "qcow2":
        return read_header(path)
    if format != "raw":
        raise ImageError(f"neither qcow2 nor raw, but {format}: {path}")
    if is_qcow2(path):
        # A guest can write that header into its raw disk, to reach host files.
        raise ImageError(
            f"said to be raw, but it has a qcow2 header: {path}",
            hint="if it is meant to be qcow2, say so: --format qcow2",
        )
    return None


def backing_path(overlay: Path, name: str) -> Path | None:
    """Where the backing file that an overlay names is; None if that is no file's name.

    A relative name counts from the overlay's folder, as it was named, links or
    not. After ``file:`` QEMU counts it from wherever QEMU was started: that names
    no file that we could know.
    """
    plain = name.removeprefix("file:")
    if plain != name:
        return Path(plain) if plain.startswith("/") else None
    return None if has_protocol(name) else overlay.parent / name


def _followed(format: str | None) -> bool:
    return format in (None, "raw", "qcow2")


def _backing_format(overlay: Path, header: Header, backing: Path, trusted: bool) -> str:
    if header.backing_format is not None:
        return header.backing_format
    if trusted:
        return "qcow2" if is_qcow2(backing) else "raw"
    # QEMU would look into the file, whose guest may have written what it finds.
    raise Untrusted(
        f"{overlay} does not say which format its backing file has: {backing}",
        hint="say it: qemuctl image rebase --unsafe "
        "--backing-format qcow2|raw OVERLAY BACKING",
    )


def _unseen(overlay: Path, header: Header, trusted: bool) -> Layer:
    name = header.backing_file or ""
    if not trusted:
        raise Untrusted(f"the backing file of {overlay} is not a plain file: {name}")
    return Layer(Path(name), header.backing_format or "raw", 0, 0, 0, remote=name)
