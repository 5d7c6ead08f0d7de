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
    from qemuctl.image import store as store
    from qemuctl.image.model import Image
    from qemuctl.image.recipe import build_tiny
    from qemuctl.image.tiny_image import tiny

__getattr__ = exports(
    __name__,
    {
        "Image": "qemuctl.image.model",
        "build_tiny": "qemuctl.image.recipe",
        "store": "qemuctl.image.store",
        "tiny": "qemuctl.image.tiny_image",
    },
)

__all__ = ["Image", "build_tiny", "tiny"]
