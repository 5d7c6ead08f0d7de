"""qemu-img and images: the only room that runs qemu-img."""

from qemuctl.image.tiny import Image, build_tiny, tiny

__all__ = ["Image", "build_tiny", "tiny"]
