"""Which files an image may have below it without its user saying so."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

from qemuctl.image.chain import Layer, Untrusted, check_trusted
from qemuctl.paths import images_dir, kept_dir, vms_dir

# What `freeze` calls the files that linked clones share.
_BASE = re.compile(r"[a-z][a-z0-9-]*\.base\d+\.qcow2")


def is_base(path: Path) -> bool:
    """Whether a file is one that disks are made from and nobody writes to: in the
    image store, or frozen from a VM's disk. All else in a VM's folder is its own,
    such as its log, or a disk that it may write to."""
    where = path.resolve()
    if where.is_relative_to(images_dir().resolve()):
        return True
    folder = where.parent
    of_vm = folder.name == "disks" and folder.parent.parent == vms_dir().resolve()
    kept = folder.parent == kept_dir().resolve()
    return (of_vm or kept) and _BASE.fullmatch(where.name) is not None


def known_as(path: Path) -> Path:
    """The name that a file has as a base, if it is one by another name, such as a
    hard link; else the path as it is."""
    found = itertools.chain(
        images_dir().glob("*/*"),
        vms_dir().glob("*/disks/*.base*.qcow2"),
        kept_dir().glob("*/*.base*.qcow2"),
    )
    return next((base for base in found if _same(base, path)), path)


def in_store(path: Path) -> bool:
    """Whether a file, which need not be there, is below the image store's folder,
    wherever links lead, and by whatever name that folder has."""
    return any(_same(folder, images_dir()) for folder in path.resolve().parents)


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


def check_origin(path: Path, format: str, *, trust_backing: bool = False) -> None:
    """Before backing files are read on an image's word, or written to: are they where
    its user's own would be, in the image's own folder or `is_base`?

    Raises ImageError, as `chain` does too; nothing of that with ``trust_backing``
    but for a chain that cannot be followed.
    """
    layers: list[Layer] = check_trusted(
        path, format, inside=[Path("/")], trust_backing=trust_backing
    )
    own = path.absolute().parent.resolve()
    for layer in [] if trust_backing else layers[1:]:
        where = layer.path.resolve()
        if where.parent != own and not is_base(where):
            raise Untrusted(
                f"the backing file of {path} lies elsewhere: {where}",
                hint="if you trust who made the image: --trust-backing",
            )
