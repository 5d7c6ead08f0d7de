"""qemu-img and images: the only room that runs qemu-img.

::

    catalog ─► download ─┐
    recipe ──────────────┼─► store ◄── manifest
    a file of the user's ┘     │
    qcow2 ─► chain ───► overlay, convert, … ─► qemu_img
    seed     what cloud-init reads at first boot
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.image.recipe import build_tiny, tiny
    from qemuctl.image.store import Image

__getattr__ = exports(
    __name__,
    {
        "Image": "qemuctl.image.store",
        "build_tiny": "qemuctl.image.recipe",
        "tiny": "qemuctl.image.recipe",
    },
)

__all__ = ["Image", "build_tiny", "tiny"]
