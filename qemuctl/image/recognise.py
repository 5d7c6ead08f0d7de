"""What a file is by its beginning and its end, where that is no question of trust.

A disk's format is named by whoever brings it in, never guessed: a guest can write any
header into a raw disk. What is recognised here is refused as a raw disk, or converted,
before it is one.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from qemuctl.errors import ImageError
from qemuctl.image.qcow2 import MAGIC, open_image
from qemuctl.structs import Struct

SECTOR = 512


class Kind(Struct, kw_only=False):
    """``name`` as people call it; ``format`` in QEMU's words, for an image that can be
    converted; ``unpack`` is the command for a packed file, to be followed by its name.
    """

    name: str
    format: Literal["qcow2", "vmdk", "vdi", "vhdx", "vpc"] | None = None
    unpack: str | None = None


_QCOW2 = Kind("a qcow2 image", "qcow2")
_VMDK = Kind("a VMDK image", "vmdk")
_VPC = Kind("a VHD image", "vpc")
_PARALLELS = Kind("a Parallels image")
_TAR = Kind("a tar archive (an OVA, perhaps)", unpack="tar -xf")
# By their place, which counts from the end where it is negative.
_KINDS: dict[tuple[int, bytes], Kind] = {
    (0, MAGIC): _QCOW2,
    (0, b"KDMV"): _VMDK,
    (0, b"COWD"): _VMDK,
    (0, b"# Disk DescriptorFile"): _VMDK,
    (64, b"\x7f\x10\xda\xbe"): Kind("a VDI image", "vdi"),
    (0, b"vhdxfile"): Kind("a VHDX image", "vhdx"),
    (0, b"conectix"): _VPC,
    (-512, b"conectix"): _VPC,  # one of fixed size has no header
    (0, b"WithoutFreeSpace"): _PARALLELS,
    (0, b"WithouFreSpacExt"): _PARALLELS,
    (0, b"QED\0"): Kind("a QED image"),
    (0, b"Bochs Virtual HD Image"): Kind("a Bochs image"),
    (-512, b"koly"): Kind("a DMG image"),
    (0, b"\xfd7zXZ\0"): Kind("packed by xz", unpack="xz -dk"),
    (0, b"\x1f\x8b"): Kind("packed by gzip", unpack="gzip -dk"),
    (0, b"\x1f\x9d"): Kind("packed by compress", unpack="gzip -dk"),
    (0, b"(\xb5/\xfd"): Kind("packed by zstd", unpack="zstd -d"),
    (0, b"BZh"): Kind("packed by bzip2", unpack="bzip2 -dk"),
    (0, b"LZIP"): Kind("packed by lzip", unpack="lzip -dk"),
    (0, b"\x04\x22\x4d\x18"): Kind("packed by lz4", unpack="lz4 -d"),
    (0, b"\x5d\x00\x00\x80\x00\xff"): Kind("packed by lzma", unpack="xz -dk"),
    (0, b"\x5d\x00\x00\x00\x04\xff"): Kind("packed by lzma", unpack="xz -dk"),
    (0, b"PK\x03\x04"): Kind("packed by zip", unpack="unzip"),
    (0, b"7z\xbc\xaf\x27\x1c"): Kind("packed by 7-Zip", unpack="7z x"),
    (0, b"Rar!\x1a\x07"): Kind("packed by RAR", unpack="unrar x"),
    (257, b"ustar"): _TAR,
}


def recognised(path: Path) -> Kind | None:
    """What a file is by its signature; None for what may be a raw disk.

    Raises ImageError when it cannot be read.
    """
    with open_image(path) as file:
        begins = file.read(SECTOR)
        size = file.seek(0, 2)
        file.seek(max(0, size - SECTOR))
        ends = file.read(SECTOR) if size >= SECTOR else b""
    for (at, magic), kind in _KINDS.items():
        part = begins[at:] if at >= 0 else ends[at:]
        if part.startswith(magic):
            return kind
    return None


def check_raw(path: Path) -> None:
    """Raises ImageError for a file that is an image of another format, or packed."""
    kind = recognised(path)
    if kind is not None:
        raise other_kind("a raw disk", path, kind)


def check_sectors(path: Path) -> None:
    """Raises ImageError for what is too short for a disk, or ends within a sector."""
    with open_image(path) as file:
        size = file.seek(0, 2)
    if not size or size % SECTOR:
        raise ImageError(
            f"not a disk image: {path}",
            hint=f"its {size} bytes are not a number of sectors ({SECTOR} bytes)",
        )


def check_no_image(path: Path) -> None:
    """Raises ImageError for an image of another format that is to be a raw disk: its
    guest would see, and overwrite, the file's own tables. Packed files are left alone:
    a guest may unpack them."""
    kind = recognised(path)
    if kind is not None and kind.unpack is None:
        raise other_kind("a raw disk", path, kind)


def other_kind(said: str, path: Path, kind: Kind) -> ImageError:
    """The error for a file that is not what it is said to be, with the way out."""
    return ImageError(
        f"not {said}, but {kind.name}: {path}", hint=_way(kind, str(path))
    )


def _way(kind: Kind, path: str) -> str:
    file = shlex.quote(path)
    if kind.unpack is not None:
        return f"first unpack it: {kind.unpack} {file}"
    if kind.format is not None:
        return (
            f"qemuctl image import {file} --format {kind.format}; or: "
            f"qemuctl image convert {file} disk.qcow2 --from {kind.format}"
        )
    return f"first convert it: qemu-img convert -O qcow2 {file} disk.qcow2"
