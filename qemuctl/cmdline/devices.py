"""Front ends: ``-device`` and ``device_add``.

``bus`` and ``addr`` are always written where the machine has PCI, so that a
guest finds its devices at the same place whatever else comes or goes.
"""

from __future__ import annotations

from typing import ClassVar

from qemuctl.cmdline.qapi import JsonOption


class Device(JsonOption):
    """What every device has."""

    OPTION: ClassVar = "-device"
    driver: str
    id: str
    bus: str | None = None
    addr: str | None = None


class PcieRootPort(Device):
    """A port of q35's root complex: one device, plugged at any time."""

    driver: str = "pcie-root-port"
    chassis: int
    port: int
    multifunction: bool | None = None


class VmGenId(Device):
    """Tells the guest's kernel when it goes on as another machine."""

    driver: str = "vmgenid"
    guid: str = "auto"


class BlockDevice(Device):
    """What every disk and CD-ROM has; ``drive`` names its node.

    ``write_cache`` is ``on`` or ``off``: whether the guest sees a cache that
    it has to flush.
    """

    drive: str | None = None
    bootindex: int | None = None
    serial: str | None = None
    write_cache: str | None = None
    werror: str | None = None
    rerror: str | None = None


class VirtioBlk(BlockDevice):
    """``virtio-blk-pci``, or ``virtio-blk-device`` where there is no PCI."""


class ScsiDevice(BlockDevice):
    """``scsi-hd`` or ``scsi-cd`` on a SCSI controller."""

    scsi_id: int
    lun: int = 0


class IdeDevice(BlockDevice):
    """``ide-hd`` or ``ide-cd``: ``unit`` on one of an IDE or AHCI bus."""

    unit: int


class Nic(Device):
    """A network card; an empty ``romfile`` leaves out its network boot ROM."""

    netdev: str
    mac: str
    bootindex: int | None = None
    romfile: str | None = None


class VirtSerialPort(Device):
    """A channel on a virtio-serial controller, found in the guest by ``name``."""

    driver: str = "virtserialport"
    chardev: str
    name: str


class VirtioRng(Device):
    """Random numbers for the guest, from the object ``rng``."""

    rng: str


class VirtioBalloon(Device):
    """The balloon; by ``free_page_reporting`` the host gets back what the guest
    has freed."""

    free_page_reporting: bool


class VirtioMemPci(Device):
    """Memory that grows and shrinks: ``requested_size`` bytes of ``memdev``."""

    driver: str = "virtio-mem-pci"
    memdev: str
    requested_size: int
    memaddr: int | None = None


class PcDimm(Device):
    """A memory module, plugged in and out as a whole."""

    driver: str = "pc-dimm"
    memdev: str
    slot: int | None = None
