"""What must be the same for a saved RAM to fit: the machine and its devices.

QEMU finds the state of a device by where the device is. One that came later gets
none, and its guest knows nothing of it; one that has gone makes the load fail in
its middle, when nothing of before is left. So it is compared first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError
from qemuctl.hotplug.bus import PERIPHERAL, Bus, Plugged
from qemuctl.qmp.plug import QomGet, QomList
from qemuctl.snapshots.records import FORK_OF

# Switches of QEMU that a guest sees, in our words.
_SWITCHES = {"-m": "memory", "-smp": "processors", "-cpu": "processor"}
# Where a device is, and how large, by what it is plugged into.
_PLACES = {"pci": ("addr",), "scsi": ("scsi-id",), "dimm": ("addr", "size")}
_NONE = "none"


async def topology(bus: Bus) -> dict[str, str]:
    """What the VM is made of now, by names that people know (qom-list, qom-get)."""
    vm = bus.connection
    record = vm.record
    found = {"machine": record.machine, "accelerator": record.accel}
    if record.template is not None:
        found[FORK_OF] = record.template
    if record.sata:
        found["disk controller"] = "on board"
    for switch, name in _SWITCHES.items():
        if (value := record.option(switch)) is not None:
            found[name] = value
    plugged = await bus.plugged()
    described = await asyncio.gather(*(_described(vm, each) for each in plugged))
    found |= dict(zip([each.id for each in plugged], described, strict=True))
    with contextlib.suppress(CommandError):  # there are none without an id
        for each in await vm.execute(QomList(path="/machine/peripheral-anon")):
            if each.type.startswith("child<"):
                found[each.name] = each.type[len("child<") : -1]
    return found


async def _described(vm: Connection, device: Plugged) -> str:
    kind = "dimm" if "dimm" in device.driver else device.driver.partition("-")[0]
    if device.bus.startswith(("pci", "port")):
        kind = "pci"
    text = f"{device.driver} on {device.bus}" if device.bus else device.driver
    for name in _PLACES.get(kind, ()):
        with contextlib.suppress(CommandError):
            path = f"{PERIPHERAL}/{device.id}"
            value = await vm.execute(QomGet(path=path, property=name))
            if kind == "pci" and isinstance(value, int):
                value = f"{value >> 3:02x}.{value & 7}"  # device and function
            text += f", {name} {value}"
    return text


async def unlike(bus: Bus, then: Mapping[str, str]) -> list[str]:
    """In what a VM that waits for a state is made of something else, one line each.

    Processors and their number are left out: one that was plugged in then is there
    from the start now.
    """
    return differences(_without_cpus(then), _without_cpus(await topology(bus)))


def _without_cpus(found: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text
        for name, text in found.items()
        if name != "processors" and not text.endswith("-cpu")
    }


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not as it was, one line each."""
    return [
        f"{name}: {then.get(name, _NONE)} then, {now.get(name, _NONE)} now"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
