"""What changes of a VM's disks give back."""

from __future__ import annotations

from pathlib import Path

from qemuctl.hotplug.sight import Sight
from qemuctl.hotplug.unplug import Removal
from qemuctl.structs import Struct


class Changed(Struct):
    """A disk, and where the change was made: in the VM that runs, in its spec."""

    id: str
    live: bool
    configured: bool


class AddedDisk(Changed):
    """A disk that was added; ``guest`` is set when it was added live."""

    serial: str
    path: Path
    guest: Sight | None = None


class RemovedDisk(Changed):
    """A disk that was removed; ``path`` is its file, if there was one, which is
    still there unless ``deleted``."""

    outcome: Removal
    path: Path | None
    deleted: bool


class ResizedDisk(Changed):
    """A disk with another size; ``guest`` tells whether it sees that."""

    before_bytes: int
    size_bytes: int
    guest: Sight | None = None


class DiskLimits(Changed):
    """What a disk may do at most in a second; None for no limit."""

    iops: int | None
    bytes_per_second: int | None


class LiveDisk(Struct):
    """A disk that a running VM has, as QEMU says.

    ``io_status`` is ``ok``, or ``nospace`` or ``failed`` when its error has stopped
    the VM; ``leaving`` tells that the guest was asked to let go of it. ``used_bytes``
    is what its file takes on the host; None for one that is not there any more.
    """

    id: str
    serial: str | None
    driver: str
    bus: str
    path: Path
    size_bytes: int
    used_bytes: int | None
    readonly: bool
    iops: int | None
    bytes_per_second: int | None
    io_status: str
    leaving: bool
