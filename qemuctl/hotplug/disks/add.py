"""Plugging one disk into a running VM: block nodes, a front end, a place.

::

    file ─► NAME-file ─► NAME ─► front end ─► limits ─► spec

A step that fails undoes those before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from functools import partial
from pathlib import Path

from qemuctl.cmdline.devices import BlockDevice, Device, ScsiDevice, VirtioBlk
from qemuctl.cmdline.qapi import to_qapi
from qemuctl.cmdline.storage import disk_node, front_end
from qemuctl.connection.connection import Connection
from qemuctl.errors import (
    CommandError,
    ImageInUse,
    MonitorLost,
    QemuctlError,
    SpecError,
    StateError,
)
from qemuctl.hotplug.bus import Bus
from qemuctl.hotplug.disks.in_spec import NewDisk, plan_disk
from qemuctl.hotplug.disks.throttle import set_limits
from qemuctl.image.overlay import create_disk
from qemuctl.paths import private_dir
from qemuctl.qmp.block import QueryNamedBlockNodes
from qemuctl.qmp.plug import QomGet
from qemuctl.registry.edit import reconfigure
from qemuctl.registry.file_users import check_free
from qemuctl.registry.records.disk_ledger import remember
from qemuctl.registry.records.hotplug_journal import Change
from qemuctl.registry.records.plugged_specs import note_plugged
from qemuctl.registry.scope import Scope
from qemuctl.spec import Disk
from qemuctl.structs import Struct
from qemuctl.thread import in_thread

_CONTROLLER, _SCSI_BUS, _TARGETS = "scsi0", "scsi0.0", 256
_LOCKED = re.compile(r'Failed to get (shared )?"[a-z ]+" lock')
# Seconds that a guest gets for what is taken back.
_UNDO_PATIENCE = 5.0


class Insertion(Struct, kw_only=False):
    """A disk that can be plugged in, as far as that can be known before."""

    bus: Bus
    new: NewDisk
    front_end: BlockDevice
    controller: Device | None
    change: Change
    config: bool

    @classmethod
    async def plan(cls, bus: Bus, disk: Disk, scope: Scope) -> Insertion:
        """Finds the disk's id, file and place; changes nothing.

        Raises as `Disks.add` does.
        """
        vm = bus.connection
        nodes = await vm.execute(QueryNamedBlockNodes())
        taken = {node.node_name for node in nodes if node.node_name}
        taken |= (await bus.devices()).keys()
        new = plan_disk(vm.name, disk, taken)
        placed, id_ = new.placed, new.placed.id or ""
        if not new.fresh:
            for node in nodes:
                _check_other_file(placed, node.file, node.node_name, node.ro)
            check_free(placed, "path", vm.paths, f"add {id_} to {vm.name}")
        device, controller = await _front_end(bus, placed)
        written = new.written.model_dump(exclude_defaults=True)
        change = Change(
            device=id_,
            removal=False,
            nodes=(id_, f"{id_}-file"),
            made=placed.path if new.fresh else None,
            configured="disks" if scope.config else None,
            entry=written if scope.config else None,
        )
        return cls(bus, new, device, controller, change, scope.config)

    @property
    def vm(self) -> Connection:
        """The connection to the VM."""
        return self.bus.connection

    async def carry_out(self) -> Disk:
        """Does it; gives the disk as QEMU has it."""
        try:
            async with self.bus.adding(self.change):
                try:
                    await self._steps()
                except BaseException:
                    # A disk that is in by now goes again.
                    with contextlib.suppress(QemuctlError):
                        await asyncio.shield(self._take_back())
                    raise
        except CommandError as error:
            if _LOCKED.search(error.desc):
                raise ImageInUse(Path(self.new.placed.path or "")) from error
            raise
        return self.new.placed

    async def _steps(self) -> None:
        placed = self.new.placed
        id_, path = placed.id or "", Path(placed.path or "")
        size = self.new.written.size
        if self.new.fresh and size is not None:
            private_dir(path.parent)
            make = partial(create_disk, path, placed.driver, size)
            await in_thread(lambda _: make())
        note_plugged(self.vm.paths, "disks", placed)
        for node in disk_node(id_, placed, path):
            await self.vm.command("blockdev-add", to_qapi(node))
        for device in filter(None, (self.controller, self.front_end)):
            await self._plug(device)
        if placed.iops or placed.bps:
            await set_limits(self.vm, id_, iops=placed.iops, bps=placed.bps)
        if self.config:
            reconfigure(self.vm.name, self.new.edit)
            if self.new.written.path is None:
                remember(path, self.vm.paths)

    async def _plug(self, device: Device) -> None:
        try:
            await self.bus.plug(device)
        except MonitorLost:
            # Nobody heard the answer, but QEMU may have done it.
            if device.id not in await self.bus.devices():
                raise

    async def _take_back(self) -> None:
        there = await self.bus.devices()
        back = Change(
            device=self.change.device, removal=True, nodes=self.change.nodes,
            file=self.change.made, delete=True,
        )  # fmt: skip
        if back.device in there:
            await self.bus.remove(back, timeout=_UNDO_PATIENCE)
        if self.controller is not None and self.controller.id in there:
            alone = Change(device=self.controller.id, removal=True)
            await self.bus.remove(alone, timeout=_UNDO_PATIENCE)


def _check_other_file(disk: Disk, file: str, node: str | None, ro: bool) -> None:
    if ro and disk.readonly:
        return
    with contextlib.suppress(OSError, ValueError):  # not every node has a file
        if Path(file).samefile(disk.path or ""):
            raise SpecError(
                f"the VM has this file open already, as {node}: {disk.path}",
                key="path",
            )


async def _front_end(bus: Bus, disk: Disk) -> tuple[BlockDevice, Device | None]:
    """The front end at a free place, and a controller that it needs first."""
    vm, common = bus.connection, front_end(disk.id or "", disk)
    if disk.bus == "virtio":
        place = await bus.place()
        driver = "virtio-blk-pci"
        return VirtioBlk(driver=driver, bus=place.bus, addr=place.addr, **common), None
    if disk.bus != "scsi":
        raise StateError(
            f"add a {disk.bus} disk to {vm.name}", "running",
            f"{disk.bus} takes no hot plug",
            hint="use --bus virtio or scsi; or, from its next start on: --config",
        )  # fmt: skip
    controller = None
    taken = set()
    if _CONTROLLER in await bus.devices():
        for each in await bus.plugged():
            if each.bus == _SCSI_BUS:
                path = f"/machine/peripheral/{each.id}"
                target = await vm.execute(QomGet(path=path, property="scsi-id"))
                taken.add(int(target))
    else:
        place = await bus.place()
        controller = Device(
            driver="virtio-scsi-pci", id=_CONTROLLER, bus=place.bus, addr=place.addr
        )
    free = next((n for n in range(_TARGETS) if n not in taken), None)
    if free is None:
        raise StateError(f"add a disk to {vm.name}", "running", "its SCSI bus is full")
    device = ScsiDevice(driver="scsi-hd", bus=_SCSI_BUS, scsi_id=free, **common)
    return device, controller
