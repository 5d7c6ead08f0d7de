"""An image: where its files are, and what is known of them."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from qemuctl.image.manifest import Manifest
from qemuctl.image.names import TINY as TINY
from qemuctl.structs import Struct


class Image(Struct, kw_only=False):
    """One image: its files in ``folder``, and what is known of them."""

    name: str
    folder: Path
    manifest: Manifest = field(hash=False)  # it holds a dict

    @property
    def disk(self) -> Path | None:
        """The disk that VMs' disks are overlays on; None for a mere kernel."""
        suffix = self.manifest.format
        return self.folder / f"disk.{suffix}" if suffix else None

    @property
    def kernel(self) -> Path | None:
        """The kernel to boot directly; None for a disk with a boot loader."""
        return self.folder / "kernel" if self.manifest.cmdline is not None else None

    @property
    def initrd(self) -> Path | None:
        return self.folder / "initrd" if self.manifest.cmdline is not None else None

    @property
    def present(self) -> bool:
        """Whether its files are there; the tiny image may have to be built."""
        return self.folder.is_dir()
