"""QMP commands and events of hot plug: devices, and what they stand on."""

from __future__ import annotations

from typing import Any

from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import TypedEvent
from qemuctl.structs import Struct


class Property(Struct):
    """qom-list: one property of an object; a child's type is ``child<DRIVER>``."""

    name: str
    type: str


class QomList(Command[list[Property]]):
    NAME = "qom-list"
    REPLY = Property
    path: str


class QomGet(Command[Any]):
    NAME = "qom-get"
    path: str
    property: str


class DeviceDel(Command[dict[str, Any]]):
    """Asks the guest to let go of a device; DEVICE_DELETED tells that it has."""

    NAME = "device_del"
    id: str


class NetdevDel(Command[dict[str, Any]]):
    NAME = "netdev_del"
    id: str


class ObjectDel(Command[dict[str, Any]]):
    NAME = "object-del"
    id: str


class DeviceDeleted(TypedEvent):
    """A device has gone; ``device`` is missing for parts without an id."""

    NAME = "DEVICE_DELETED"
    path: str
    device: str | None = None


class DeviceUnplugGuestError(TypedEvent):
    """The guest has refused to let go of a device."""

    NAME = "DEVICE_UNPLUG_GUEST_ERROR"
    path: str
    device: str | None = None


class AcpiDeviceOst(TypedEvent):
    """What a guest says of a processor or a DIMM that it was offered or asked for
    (ACPI's _OST): ``info`` has ``device``, ``source`` and ``status``."""

    NAME = "ACPI_DEVICE_OST"
    info: dict[str, Any]

    @property
    def device(self) -> str | None:
        device = self.info.get("device")
        return None if device is None else str(device)

    @property
    def of_removal(self) -> bool:
        return self.info.get("source") in _EJECTION

    @property
    def refused(self) -> bool:
        """Whether the answer is no: neither done nor under way."""
        return self.info.get("status") not in (_SUCCESS, _UNDER_WAY)


# ACPI 6.5, 6.3.5: the event that is answered (by the guest's own wish: 0x103), and
# the codes of the answer; 0x80 and up, but for 0x84, refuse an ejection.
_EJECTION = (0x03, 0x103)
_SUCCESS = 0x00
_UNDER_WAY = 0x84
