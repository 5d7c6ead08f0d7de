"""Which files a disk may be made from without its user saying so."""

from __future__ import annotations

from pathlib import Path

from qemuctl.image.chain import Layer, Untrusted, check_trusted
from qemuctl.image.trust import is_base

__all__ = ["check_chain", "is_base"]


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
