"""Where devices sit: fixed addresses, so that guests keep their device names.

::

    q35      pcie.0 ┬ 02..08  what stays for a run: screen, agent channel, …
                    └ 10..17  root ports, eight a slot: NICs, then disks, then
                              HOTPLUG_PORTS free ones
    pc       pci.0  ┬ 02..08  the same
                    └ 10..1e  NICs, then disks; free slots take hot plug
    microvm  virtio-mmio, no addresses and no hot plug

q35's root bus takes no hot plug, so all that may be unplugged has a port of
its own. What stays sits on the root bus: each port costs the guest some time
at boot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from qemuctl.cmdline.devices import PcieRootPort
from qemuctl.errors import SpecError
from qemuctl.structs import Struct

HOTPLUG_PORTS = 4

Chipset = Literal["q35", "pc", "microvm"]
Role = Literal["vga", "vserial", "rng", "balloon", "scsi", "usb", "ahci"]

_ROOT_BUS = {"q35": "pcie.0", "pc": "pci.0"}
# Slot 0 is the host bridge, slot 1 is PIIX on pc; q35 has its own at 1f.
_FIXED: dict[Role, int] = {
    "vga": 0x02,
    "vserial": 0x03,
    "rng": 0x04,
    "balloon": 0x05,
    "scsi": 0x06,
    "usb": 0x07,
    "ahci": 0x08,
}
_FIRST_SLOT = 0x10
_PC_SLOTS = 15
_PORT_SLOTS = 8
_FUNCTIONS = 8


class Place(Struct):
    """The ``bus`` and ``addr`` of one device; both None without PCI."""

    bus: str | None = None
    addr: str | None = None


class Layout:
    """Gives out places on one machine, in the order they are asked for."""

    def __init__(self, chipset: Chipset, free: int = HOTPLUG_PORTS) -> None:
        self.chipset = chipset
        self._free = free
        self._plugged = 0

    def virtio(self, kind: str) -> str:
        """The driver of a virtio device here: ``virtio-KIND-pci`` or ``-device``."""
        suffix = "device" if self.chipset == "microvm" else "pci"
        return f"virtio-{kind}-{suffix}"

    def fixed(self, role: Role) -> Place:
        """The place of a device that stays for as long as the VM runs."""
        if self.chipset == "microvm":
            return Place()
        return Place(bus=_ROOT_BUS[self.chipset], addr=f"{_FIXED[role]:#x}")

    def plug(self, key: str) -> Place:
        """The next place of a device that may be unplugged.

        Raises SpecError, naming the field ``key``, when there is none left.
        """
        index = self._plugged
        self._plugged += 1
        if self.chipset == "microvm":
            return Place()
        if self.chipset == "pc":
            if index >= _PC_SLOTS:
                raise _full(key, _PC_SLOTS, "pc")
            return Place(bus="pci.0", addr=f"{_FIRST_SLOT + index:#x}")
        most = _PORT_SLOTS * _FUNCTIONS - self._free
        if index >= most:
            raise _full(key, most, "q35")
        return Place(bus=f"port{index}", addr="0x0")

    def ports(self) -> tuple[PcieRootPort, ...]:
        """The root ports of all devices plugged so far, and the free ones."""
        if self.chipset != "q35":
            return ()
        return tuple(root_port(index) for index in range(self._plugged + self._free))


def free_places(
    machine: str, ports: Sequence[str], buses: Collection[str], slots: Collection[str]
) -> list[Place]:
    """Where something can be plugged in on a running machine.

    ``ports`` are its root ports, ``buses`` those that hold a device, ``slots`` the
    ``addr`` of each device on pc's root bus, as QEMU gives it (a devfn).
    """
    if "q35" in machine:
        return [Place(bus=port, addr="0x0") for port in ports if port not in buses]
    if "i440fx" in machine:
        taken = {int(devfn) // _FUNCTIONS for devfn in slots}
        every = range(_FIRST_SLOT, _FIRST_SLOT + _PC_SLOTS)
        return [Place(bus="pci.0", addr=f"{n:#x}") for n in every if n not in taken]
    return []


def root_port(index: int) -> PcieRootPort:
    """One of q35's root ports, counted from 0."""
    slot, function = divmod(index, _FUNCTIONS)
    return PcieRootPort(
        id=f"port{index}",
        bus=_ROOT_BUS["q35"],
        addr=f"{_FIRST_SLOT + slot:#x}.{function:#x}",
        # Chassis 0 is the root complex itself.
        chassis=index + 1,
        port=index,
        # Only function 0 says it; without, the guest does not look for others.
        multifunction=True if function == 0 else None,
    )


def _full(key: str, most: int, machine: str) -> SpecError:
    return SpecError(
        f"no slot left: machine: {machine} takes {most} network cards and "
        "virtio disks at start",
        key=key,
        hint="use bus: scsi for some of the disks",
    )
