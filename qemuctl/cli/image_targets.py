"""What the `image` commands are given: files, names of images, formats, sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from qemuctl.cli.declare import Argument, Option
from qemuctl.cli.output import note
from qemuctl.errors import ImageError, UsageError

_SUFFIXES = {
    ".qcow2": "qcow2",
    ".raw": "raw",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhdx": "vhdx",
    ".vhd": "vpc",
    ".vpc": "vpc",
}

File = Annotated[Path, Argument(metavar="FILE", help="an image file")]
Target = Annotated[
    str, Argument(metavar="TARGET", help="an image file, or an image's name")
]
Format = Annotated[
    str | None,
    Option("--format", metavar="FORMAT", help="what it is: qcow2 or raw"),
]
Trust = Annotated[
    bool,
    Option("--trust-backing", help="its backing files may lie anywhere"),
]


def resolve(target: str) -> tuple[Path, str | None]:
    """The file that is meant, and its format where that is known: a name without
    a slash may be that of an image in the store.

    Raises ImageError, for an image that is damaged or has no disk.
    """
    from qemuctl.image import store

    if target in store.names():
        found = store.find(target)
        if found.disk is None:
            raise ImageError(f"the image has no disk: {target}")
        return found.disk, found.manifest.format
    return Path(target), None


def seen(target: str, format: str | None) -> tuple[Path, str]:
    """The file that is meant and its format, for a command that only reads."""
    path, known = resolve(target)
    return path, seen_format(path, format or known)


def writable(path: Path) -> Path:
    """The file itself, there or not, unless others are made from it.

    Raises ImageError: to write to it would spoil them.
    """
    from qemuctl.image.trust import in_store, is_base, known_as
    from qemuctl.registry.file_users import built_on

    base = known_as(path)
    if in_store(base):
        there = f"work on a copy: qemuctl image convert {path} copy.qcow2"
        new = "to have it there: qemuctl image import FILE"
        raise ImageError(
            f"nobody writes to an image in the store: {path}",
            hint=there if os.path.lexists(path) else new,
        )
    above = built_on(base)
    if above:
        raise ImageError(f"disks of {', '.join(above)} are made from it: {path}")
    if path.exists() and is_base(base):
        raise ImageError(f"disks are made from it: {path}")
    return path


def named_format(path: Path, format: str | None, say: str = "--format") -> str:
    """The format that is said or that the file's name ends with; nothing is guessed.

    Raises UsageError, with ``say`` as the option to say it by.
    """
    found = format or _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"which format is it? {path}",
            hint=f"say it: {say} qcow2, or a name that ends with .qcow2 or .raw",
        )
    return found


def seen_format(path: Path, format: str | None) -> str:
    """The same for a command that only reads: there the header may decide."""
    from qemuctl.image.qcow2 import is_qcow2

    known = format or _SUFFIXES.get(path.suffix.lower())
    if known is None:
        known = "qcow2" if is_qcow2(path) else "raw"
        note(f"read as {known}, by how it begins (--format names another): {path}")
    return known


def parsed_size(text: str) -> int:
    """A size in bytes. Raises UsageError."""
    from qemuctl.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def new_size(text: str, before: int) -> int:
    """A size, or with a sign by how much it differs from the one before.

    Raises UsageError, also when nothing would be left.
    """
    from qemuctl.units import format_size

    if not text.startswith(("+", "-")):
        return parsed_size(text)
    change = parsed_size(text[1:])
    if text.startswith("+"):
        return before + change
    if change >= before:
        raise UsageError(f"there is only {format_size(before)}: {text}")
    return before - change


def check_origin(path: Path, format: str, trust_backing: bool) -> None:
    """Before the content of backing files is copied, or they are written to: are
    they where the user's own would be? Raises ImageError."""
    from qemuctl.image import trust

    if format == "qcow2":
        trust.check_origin(path, format, trust_backing=trust_backing)
