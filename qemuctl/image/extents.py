"""Where the data of an image is, and what it takes: `qemu-img map`."""

from __future__ import annotations

import json
from pathlib import Path

from qemuctl.image import qemu_img
from qemuctl.image.chain import Layer, chain
from qemuctl.image.limits import LOOK
from qemuctl.structs import Struct


class Extent(Struct, kw_only=False):
    """A stretch of the disk as the guest sees it; offsets and lengths in bytes.

    ``depth`` is the layer that decides, 0 the top. Without ``data`` it reads as
    zeros; ``present`` says whether any layer says so. ``offset`` is where the data
    is in that layer's file, None if it is not there as it is (compressed).
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None


class Usage(Struct, kw_only=False):
    """What an image is and takes, in bytes.

    ``allocated`` is, for each of ``layers``, how much of what the guest sees comes
    from its file.
    """

    virtual_size: int
    file_size: int
    used: int
    layers: tuple[Layer, ...]
    allocated: tuple[int, ...]

    @property
    def used_by_all(self) -> int:
        """What the files of all layers take on the disk."""
        return sum(layer.used for layer in self.layers)


def extents(path: Path, format: str) -> list[Extent]:
    """The map of an image, also while a VM runs on it; adjoining parts are joined.

    Raises ImageError as `chain` does, and when it takes too much to find out.
    """
    chain(path, format)
    return _map(path, format)


def usage(path: Path, format: str) -> Usage:
    """What an image takes, layer by layer. Raises ImageError as `extents` does."""
    layers = chain(path, format)
    allocated = [0] * len(layers)
    for extent in _map(path, format):
        if extent.data:
            allocated[extent.depth] += extent.length
    top = layers[0]
    return Usage(
        top.virtual_size, top.file_size, top.used, tuple(layers), tuple(allocated)
    )


def _map(path: Path, format: str) -> list[Extent]:
    text = qemu_img.run(
        "map", "--output=json", "--force-share", "-f", format, qemu_img.file(path),
        limits=LOOK,
    )  # fmt: skip
    return [
        Extent(
            one["start"], one["length"], one["depth"], one["present"], one["zero"],
            one["data"], one.get("offset"),
        )
        for one in json.loads(text)
    ]  # fmt: skip
