"""qemu-img and images: the only room that runs qemu-img."""

from qemuctl.image.recipe import Image, build_tiny, tiny

__all__ = ["Image", "build_tiny", "tiny"]
