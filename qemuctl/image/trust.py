"""Which files an image may have below it without its user saying so."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

from qemuctl.image.chain import Layer, Untrusted, check_trusted
from qemuctl.paths import (
    cached_templates_dir,
    images_dir,
    kept_dir,
    templates_dir,
    vms_dir,
)

# What `freeze` calls the files that linked clones share.
_BASE = re.compile(r"[a-z][a-z0-9-]*\.base\d+\.qcow2")


def is_base(path: Path) -> bool:
    """Whether a file is one that disks are made from and nobody writes to: in the
    image store, a template's, or frozen from a VM's disk. All else in a VM's folder is
    its own, such as its log, or a disk that it may write to."""
    where = path.resolve()
    if where.is_relative_to(images_dir().resolve()):
        return True
    folder = where.parent
    if folder.name == "disks" and of_template(where) is not None:
        return True
    of_vm = folder.name == "disks" and folder.parent.parent == vms_dir().resolve()
    kept = folder.parent == kept_dir().resolve()
    return (of_vm or kept) and _BASE.fullmatch(where.name) is not None


def of_template(path: Path) -> str | None:
    """The name of the template that a file belongs to, if it is one's."""
    where = path.resolve()
    for folder in map(Path.resolve, (templates_dir(), cached_templates_dir())):
        if where.is_relative_to(folder) and where != folder:
            return where.relative_to(folder).parts[0]
    return None


def known_as(path: Path) -> Path:
    """The name that a file has as a base, if it is one by another name, such as a
    hard link; else the path as it is."""
    found = itertools.chain(
        images_dir().glob("*/*"),
        vms_dir().glob("*/disks/*.base*.qcow2"),
        kept_dir().glob("*/*.base*.qcow2"),
        templates_dir().glob("*/*/disks/*.qcow2"),
        cached_templates_dir().glob("*/*/disks/*.qcow2"),
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
