"""The disks of a VM: the image's own, and others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from qemuctl.spec.base import Model
from qemuctl.spec.scalars import Size, Text
from qemuctl.spec.unique import Id, check_unique
from qemuctl.typed.marks import setting


class Disk(Model):
    """One disk: an existing file (`path`) or a new one of `size`."""

    id: Id | None = setting(
        default=None, description="its name, and its serial's default; default: diskN"
    )
    path: Text | None = None
    size: Size | None = None
    format: Literal["qcow2", "raw"] | None = setting(
        default=None, description="default: by the path's suffix, qcow2 for a new disk"
    )
    bus: Literal["virtio", "scsi", "sata", "ide"] = "virtio"
    readonly: bool = False
    cache: (
        Literal["none", "writeback", "writethrough", "directsync", "unsafe"] | None
    ) = None
    aio: Literal["threads", "native", "io_uring"] | None = None
    discard: Literal["unmap", "ignore"] = "unmap"
    serial: Text | None = setting(default=None, max_length=20)
    boot_index: int | None = setting(default=None, ge=0)
    iops: int | None = setting(
        default=None, ge=1, description="at most so many a second"
    )
    bps: Size | None = setting(
        default=None, ge=512, description="at most so many bytes a second"
    )

    def __post_init__(self) -> None:
        if (self.path is None) == (self.size is None):
            raise ValueError("a disk has either a path or a size")
        if self.size is not None and self.size < 512:
            raise ValueError(f"too small: {self.size} bytes (write 10G)")
        if self.size is not None and self.readonly:
            raise ValueError("a new, empty disk cannot be read-only")
        if self.path is not None and self.format is None and self.by_suffix is None:
            raise ValueError(
                f"the format of {self.path!r} is not known: add format: qcow2 or raw"
            )
        if self.aio == "native" and self.cache not in ("none", "directsync"):
            raise ValueError("aio: native needs cache: none or directsync")

    @property
    def by_suffix(self) -> Literal["qcow2", "raw"] | None:
        """The format that the path's suffix names."""
        if self.path is not None and self.path.endswith(".qcow2"):
            return "qcow2"
        if self.path is not None and self.path.endswith(".raw"):
            return "raw"
        return None

    @property
    def driver(self) -> Literal["qcow2", "raw"]:
        """The format in force: always named, never guessed from the content."""
        return self.format or self.by_suffix or "qcow2"


def disk_ids(disks: Iterable[Disk]) -> list[str]:
    """The ids of all disks of a VM, the image's included: their own, or diskN.

    Raises ValueError where one has the id that is another's by its place.
    """
    ids = [disk.id or f"disk{index}" for index, disk in enumerate(disks)]
    check_unique("two disks have the same id", ids)
    return ids
