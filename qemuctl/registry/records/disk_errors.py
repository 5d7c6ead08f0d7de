"""Why a VM has stopped at a disk's error: from the events that QEMU wrote."""

from __future__ import annotations

from pathlib import Path

from qemuctl.qmp import eventlog
from qemuctl.qmp.block import BlockIoError
from qemuctl.structs import Struct


class DiskError(Struct, kw_only=False):
    """The disk whose request failed, and the host's reason for it."""

    id: str
    reason: str
    no_space: bool

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"

    @property
    def hint(self) -> str:
        """What mends it."""
        if self.no_space:
            return "make room where its file is, then resume"
        return "mend what is wrong with its file, then resume"


def last_disk_error(events: Path) -> DiskError | None:
    """The last error that has stopped the VM (BLOCK_IO_ERROR); None without any."""
    for event in reversed(list(eventlog.past(events))):
        if event.name == BlockIoError.NAME:
            error = BlockIoError.of(event)
            if error.action == "stop":
                return _told(error)
    return None


def _told(error: BlockIoError) -> DiskError:
    id_ = (error.node_name or error.device or "a disk").removesuffix("-file")
    no_space = bool(error.nospace)
    reason = "no space left on the host" if no_space else error.reason
    return DiskError(id_, reason[:1].lower() + reason[1:], no_space)
