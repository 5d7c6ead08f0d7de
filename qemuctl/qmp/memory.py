"""QMP commands and events of a guest's memory: balloon, virtio-mem, DIMMs."""

from __future__ import annotations

from typing import Any

from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import TypedEvent
from qemuctl.structs import Struct


class Balloon(Command[dict[str, Any]]):
    """Asks the guest to keep ``value`` bytes; QEMU says yes without a driver, too."""

    NAME = "balloon"
    value: int


class MemoryDevice(Struct):
    """query-memory-devices: one device; what ``data`` holds depends on ``type``,
    such as ``dimm`` or ``virtio-mem``."""

    type: str
    data: dict[str, Any] | None = None


class QueryMemoryDevices(Command[list[MemoryDevice]]):
    NAME = "query-memory-devices"
    REPLY = MemoryDevice


class BalloonChange(TypedEvent):
    """The guest has given memory back, or taken it; at most one a second."""

    NAME = "BALLOON_CHANGE"
    actual: int


class MemoryDeviceSizeChange(TypedEvent):
    """A virtio-mem device has another size now, in bytes."""

    NAME = "MEMORY_DEVICE_SIZE_CHANGE"
    size: int
    qom_path: str
    id: str | None = None
