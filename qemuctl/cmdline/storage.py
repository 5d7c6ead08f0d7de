"""Disks and the CD-ROM: block nodes and their front ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuctl.cmdline.blockdev import BlockCache, FileNode, FormatNode
from qemuctl.cmdline.devices import (
    BlockDevice,
    Device,
    IdeDevice,
    ScsiDevice,
    VirtioBlk,
)
from qemuctl.cmdline.layout import Layout
from qemuctl.cmdline.machine import Element
from qemuctl.errors import SpecError
from qemuctl.paths import VmPaths
from qemuctl.spec.disk import Disk, disk_ids
from qemuctl.spec.model import Spec

if TYPE_CHECKING:  # a device can be made without looking at the host
    from qemuctl.host import Host

CDROM = "cdrom0"

# qemu(1), -drive cache=: write-cache of the front end, cache.direct, cache.no-flush.
_CACHE = {
    "writeback": (True, False, False),
    "none": (True, True, False),
    "writethrough": (False, False, False),
    "directsync": (False, True, False),
    "unsafe": (True, False, True),
}
# The CD-ROM keeps its place, QEMU's own, whatever disks come or go.
_CDROM_POSITION = 2
_POSITIONS = {"sata": 6, "ide": 4}
_SCSI_TARGETS = 256


def disk_node(name: str, disk: Disk, path: Path) -> Iterator[FileNode | FormatNode]:
    """The block nodes of one disk: ``NAME-file``, and ``NAME`` on top of it."""
    cache = None
    if disk.cache is not None:
        _, direct, no_flush = _CACHE[disk.cache]
        cache = BlockCache(direct=direct, no_flush=no_flush)
    read_only = True if disk.readonly else None
    yield FileNode(
        driver=_protocol(path),
        node_name=f"{name}-file",
        filename=path,
        read_only=read_only,
        cache=cache,
        discard=disk.discard,
        aio=disk.aio,
    )
    yield FormatNode(
        driver=disk.driver,
        node_name=name,
        file=f"{name}-file",
        read_only=read_only,
        cache=cache,
        discard=disk.discard,
    )


def _protocol(path: Path, device: str = "host_device") -> str:
    # The file driver refuses devices; /dev/shm holds ordinary files.
    text = str(path)
    shm = text.startswith("/dev/shm/")  # noqa: S108 (a prefix, not a file of ours)
    is_device = text.startswith("/dev/") and not shm
    return device if is_device else "file"


def storage(
    spec: Spec, paths: VmPaths, host: Host, layout: Layout, boot: Mapping[str, int]
) -> Iterator[Element]:
    """All disks and the CD-ROM; ``boot`` gives boot indexes by device id.

    Raises SpecError for a bus that the machine does not have or that is full,
    HostError for a front end that the binary does not have.
    """
    if spec.chipset == "microvm":
        _only_virtio(spec)
    yield from _controllers(spec, host, layout)
    places = _Places(spec, layout)
    for index, (id_, disk) in enumerate(
        zip(disk_ids(spec.disks), spec.disks, strict=True)
    ):
        path = Path(disk.path) if disk.path else paths.disk_file(id_, disk.driver)
        device = places.disk(index, id_, disk, boot.get(id_))
        host.binary.require_device(device.driver, f"disks[{index}].bus")
        yield from disk_node(id_, disk, path)
        yield device
    if spec.cdrom is not None:
        yield from _cdrom(spec.cdrom, spec, host, boot.get(CDROM))


def _only_virtio(spec: Spec) -> None:
    for index, disk in enumerate(spec.disks):
        if disk.bus != "virtio":
            raise SpecError(
                f"microvm has no {disk.bus} bus: use bus: virtio",
                key=f"disks[{index}].bus",
            )
    if spec.cdrom is not None:
        raise SpecError(
            "microvm has no CD-ROM drive",
            key="cdrom",
            hint="add the image to disks with format: raw and readonly: true",
        )


def _controllers(spec: Spec, host: Host, layout: Layout) -> Iterator[Element]:
    buses = {disk.bus: index for index, disk in reversed([*enumerate(spec.disks)])}
    if "scsi" in buses:
        driver = layout.virtio("scsi")
        host.binary.require_device(driver, f"disks[{buses['scsi']}].bus")
        place = layout.fixed("scsi")
        yield Device(driver=driver, id="scsi0", bus=place.bus, addr=place.addr)
    if "sata" in buses and spec.chipset == "pc":
        host.binary.require_device("ich9-ahci", f"disks[{buses['sata']}].bus")
        place = layout.fixed("ahci")
        yield Device(driver="ich9-ahci", id="ahci0", bus=place.bus, addr=place.addr)


def front_end(id_: str, disk: Disk) -> dict[str, Any]:
    """What every front end of a disk has, wherever it is plugged in."""
    write_cache = None
    if disk.cache is not None:
        write_cache = "on" if _CACHE[disk.cache][0] else "off"
    return {
        "id": id_,
        "drive": id_,
        # So the guest finds each one, whatever letters it gives them.
        "serial": disk.serial or id_,
        "write_cache": write_cache,
        # A full or broken host disk stops the guest, which can then go on where
        # it was, instead of handing it an error.
        "werror": "stop",
        "rerror": "stop",
    }


class _Places:
    """Gives each disk its front end, in the order of the spec."""

    def __init__(self, spec: Spec, layout: Layout) -> None:
        self._chipset = spec.chipset
        self._layout = layout
        self._targets = iter(range(_SCSI_TARGETS))
        self._free = {bus: list(range(count)) for bus, count in _POSITIONS.items()}
        if spec.cdrom is not None:
            self._free["sata" if spec.chipset == "q35" else "ide"].remove(
                _CDROM_POSITION
            )

    def disk(
        self, index: int, id_: str, disk: Disk, bootindex: int | None
    ) -> BlockDevice:
        key = f"disks[{index}].bus"
        common = front_end(id_, disk) | {"bootindex": bootindex}
        if disk.bus == "virtio":
            place, driver = self._layout.plug(key), self._layout.virtio("blk")
            return VirtioBlk(driver=driver, bus=place.bus, addr=place.addr, **common)
        if disk.bus == "scsi":
            target = self._target(key)
            return ScsiDevice(driver="scsi-hd", bus="scsi0.0", scsi_id=target, **common)
        bus, unit = self._ide(index, disk)
        return IdeDevice(driver="ide-hd", bus=bus, unit=unit, **common)

    def _target(self, key: str) -> int:
        target = next(self._targets, None)
        if target is None:
            raise SpecError(f"no room for more than {_SCSI_TARGETS} disks", key=key)
        return target

    def _ide(self, index: int, disk: Disk) -> tuple[str, int]:
        key = f"disks[{index}].bus"
        if disk.bus == "ide" and self._chipset != "pc":
            raise SpecError("ide disks need machine: pc (use bus: sata)", key=key)
        if disk.readonly:
            raise SpecError(
                f"{disk.bus} disks cannot be read-only (use bus: virtio or scsi)",
                key=f"disks[{index}].readonly",
            )
        free = self._free[disk.bus]
        if not free:
            raise SpecError(
                f"no room for another {disk.bus} disk: the machine takes "
                f"{_POSITIONS[disk.bus]} devices there, the CD-ROM drive included",
                key=key,
            )
        return _ide_place(self._chipset, disk.bus, free.pop(0))


def _ide_place(chipset: str, bus: str, position: int) -> tuple[str, int]:
    """Bus and unit of one position: AHCI has a bus a disk, IDE two disks a bus."""
    if bus == "ide":
        return f"ide.{position // 2}", position % 2
    return (f"ide.{position}" if chipset == "q35" else f"ahci0.{position}"), 0


def _cdrom(
    path: str, spec: Spec, host: Host, bootindex: int | None
) -> Iterator[Element]:
    """The drive and its medium; the medium can be changed by the drive's id."""
    host.binary.require_device("ide-cd", "cdrom")
    if path:
        yield from cdrom_node(Path(path))
    bus, unit = _ide_place(
        spec.chipset, "sata" if spec.chipset == "q35" else "ide", _CDROM_POSITION
    )
    yield IdeDevice(
        driver="ide-cd",
        id=CDROM,
        bus=bus,
        unit=unit,
        drive=CDROM if path else None,
        bootindex=bootindex,
    )


def cdrom_node(path: Path, name: str = CDROM) -> Iterator[Element]:
    """The block nodes of a CD image: ``NAME-file``, and ``NAME`` on top of it."""
    yield FileNode(
        driver=_protocol(path, "host_cdrom"),
        node_name=f"{name}-file",
        filename=path,
        read_only=True,
    )
    yield FormatNode(driver="raw", node_name=name, file=f"{name}-file", read_only=True)
