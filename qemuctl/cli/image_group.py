"""The group `image`: those in the store, and files by their path."""

from qemuctl.cli import image_files, image_snapshots, images

__all__ = ["image_files", "image_snapshots", "images"]
