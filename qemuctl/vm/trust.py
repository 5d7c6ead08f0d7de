"""Which files a disk may be made from without its user saying so."""

from __future__ import annotations

import re
from pathlib import Path

from qemuctl.image.chain import Layer, Untrusted, check_trusted
from qemuctl.paths import images_dir, kept_dir, vms_dir

# What `freeze` calls the files that linked clones share.
_BASE = re.compile(r"disk\d+\.base\d+\.qcow2")


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


def check_chain(
    path: Path, format: str, *, image: Path | None = None, trust_backing: bool = False
) -> list[Layer]:
    """The files of a VM's disk, top first.

    Raises ImageError when one below the top is neither `is_base` nor ``image``,
    which the spec names itself, unless ``trust_backing``; and as `chain` does.
    """
    anywhere = [Path("/")]
    layers = check_trusted(path, format, inside=anywhere, trust_backing=trust_backing)
    named = image.resolve() if image is not None else None
    for layer in [] if trust_backing else layers[1:]:
        if not is_base(layer.path) and layer.path.resolve() != named:
            raise Untrusted(
                f"the backing file of {path} lies elsewhere: {layer.path.resolve()}",
                hint="if you trust who made the image: trust_backing: true in the "
                "spec, or --trust-backing",
            )
    return layers
