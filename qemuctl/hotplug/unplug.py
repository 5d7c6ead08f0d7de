"""Asking a guest to let go of a device, and hearing what it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any

from qemuctl import qmp
from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, MonitorLost
from qemuctl.qmp import Event, eventlog
from qemuctl.qmp.plug import (
    AcpiDeviceOst,
    DeviceDel,
    DeviceDeleted,
    DeviceUnplugGuestError,
)

# A port blinks while its guest is still busy with what was plugged in; no event
# tells of the end.
_BLINKS = 0.5
# Seconds between looks: for a processor QEMU tells of its parts alone.
_LOOK = 0.3


class Removal(StrEnum):
    """How a removal went; `REMOVED` alone means that it is done."""

    REMOVED = "removed"
    REFUSED = "refused"
    PENDING = "pending"


async def unplug(
    vm: Connection,
    device: str,
    there: Callable[[str], Awaitable[bool]],
    *,
    timeout: float,
) -> Removal:
    """Asks for a device back (device_del) and waits for the answer; ``there`` tells
    whether the VM has it.

    PENDING after ``timeout`` seconds without one: the guest may still let go of
    it. Raises CommandError where QEMU itself refuses, and UnexpectedExit.
    """
    end = time.monotonic() + timeout
    seen = eventlog.end(vm.paths.events)
    if not await _asked(vm, device, end):
        return Removal.PENDING
    while True:
        left = end - time.monotonic()
        coming = _answer(vm, seen, device)
        try:
            event = await vm.unless_ended(coming, max(min(left, _LOOK), 0))
        except TimeoutError:
            if left <= 0 or not await there(device):
                break
        else:
            if event.name != DeviceDeleted.NAME:
                return Removal.REFUSED
            break
    return Removal.PENDING if await there(device) else Removal.REMOVED


async def _asked(vm: Connection, device: str, end: float) -> bool:
    """Whether QEMU has passed the request on, before the time is over."""
    while True:
        try:
            await vm.execute(DeviceDel(id=device))
        except CommandError as error:
            if "in the process of unplug" in error.desc:
                return True
            if error.class_ == "DeviceNotFound":
                return True  # it went in this moment; who looks will see
            if "blinking" not in error.desc and "busy" not in error.desc:
                raise
            if time.monotonic() + _BLINKS > end:
                raise  # so nobody has asked the guest
            await asyncio.sleep(_BLINKS)
        except MonitorLost:
            # Whether QEMU has heard it, its answer to the next one tells.
            if time.monotonic() > end:
                return False
        else:
            return True


def _answer(vm: Connection, seen: int, device: str) -> Coroutine[Any, Any, Event]:
    names = {
        DeviceDeleted.NAME,
        DeviceUnplugGuestError.NAME,
        "MEM_UNPLUG_ERROR",  # of older QEMUs; from 9.1 on there is none
    }

    def wanted(event: Event) -> bool:
        if event.name == AcpiDeviceOst.NAME:
            # A processor or a DIMM: PC guests answer for these by ACPI alone.
            said = AcpiDeviceOst.of(event)
            # Processors of the start have no id; nothing else is asked just now.
            ours = said.device == device or (
                said.device is None and device.startswith("/")
            )
            return ours and said.of_removal and said.refused
        # Parts of a device have events of their own, without its id.
        return event.name in names and event.data.get("device") == device

    return qmp.eventstream.after(seen, vm.paths.events, wanted)
