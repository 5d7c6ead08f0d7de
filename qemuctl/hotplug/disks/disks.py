"""``vm.disks``: disks in and out of a running VM, their size and their limits.

Each change is planned against the spec first, made in QEMU, and only then
written into the spec. What a failed or killed command leaves, the journal
knows (see `bus`).
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, HotplugError, MonitorLost, StateError
from qemuctl.hotplug import disks as parts
from qemuctl.hotplug.bus import Bus, Plugged
from qemuctl.hotplug.disks.results import (
    AddedDisk,
    DiskLimits,
    LiveDisk,
    RemovedDisk,
    ResizedDisk,
)
from qemuctl.hotplug.disks.seen_by_guest import sight
from qemuctl.hotplug.disks.throttle import device_id, set_limits
from qemuctl.hotplug.unplug import Removal
from qemuctl.qmp.block import BlockResize
from qemuctl.qmp.commands import BlockInfo, QueryBlock
from qemuctl.registry.edit import preview, reconfigure
from qemuctl.registry.records.hotplug_journal import Change
from qemuctl.registry.scope import Scope
from qemuctl.spec import Disk

# Seconds that a guest gets to let go of a disk.
REMOVE_TIMEOUT = 20.0
_DRIVERS = {"virtio-blk-pci", "virtio-blk-device", "scsi-hd", "ide-hd"}
_PLUGGABLE = ("virtio-blk-pci", "scsi-hd")


class Disks:
    """The disks facet of one VM."""

    def __init__(self, vm: Connection, bus: Bus) -> None:
        self._vm = vm
        self._bus = bus

    async def list(self) -> list[LiveDisk]:
        """The disks that the VM has now (query-block). Raises QmpError."""
        bus = self._bus
        found, drives = await asyncio.gather(
            bus.plugged(_DRIVERS), self._vm.execute(QueryBlock())
        )
        plugged = {each.id: each for each in found}
        serials = await bus.properties(plugged, "serial")
        leaving = {c.device for c in bus.journal.changes() if c.removal}
        disks = [
            _live_disk(
                drive, plugged[id_], serial=serials.get(id_), leaving=id_ in leaving
            )
            for drive in drives
            if (id_ := device_id(drive)) in plugged and drive.inserted
        ]
        return sorted(disks, key=lambda disk: (len(disk.id), disk.id))

    async def add(self, disk: Disk, *, scope: Scope = Scope.BOTH) -> AddedDisk:
        """Plugs a disk in (blockdev-add, device_add); ``disk`` is one of a spec.

        Without an id it gets a free one. A failure leaves nothing behind. Raises
        as `in_spec.plan_disk`, StateError for a VM that does not run or has no
        room, ImageInUse, and CommandError when QEMU refuses.
        """
        if not scope.live:
            return parts.in_spec.add(self._vm.name, disk)
        async with self._bus.changing():
            insertion = await parts.add.Insertion.plan(self._bus, disk, scope)
            placed = await insertion.carry_out()
        serial = placed.serial or placed.id or ""
        return AddedDisk(
            id=placed.id or "",
            serial=serial,
            path=Path(placed.path or ""),
            live=True,
            configured=scope.config,
            guest=await sight(self._vm, serial),
        )

    async def remove(
        self,
        id: str,
        *,
        scope: Scope = Scope.BOTH,
        timeout: float = REMOVE_TIMEOUT,
        force: bool = False,
        delete: bool = False,
    ) -> RemovedDisk:
        """Asks the guest to let go of a disk, in ``timeout`` seconds (device_del).

        The disk that it boots from needs ``force``. The file stays unless
        ``delete``, which takes one that qemuctl made.

        Raises HotplugError with the outcome ``refused`` or ``pending``: then a
        later command does the rest; and StateError, SpecError, UsageError before
        anything is asked.
        """
        name = self._vm.name
        if not scope.live:
            return parts.in_spec.remove(name, id, delete=delete)
        pending = self._pending(id)
        async with self._bus.changing():
            ended = pending and not self._pending(id)
            if pending and ended and not await self._bus.there(id):
                # The guest has let go of it since, and all else is done.
                return _removed(id, pending)
            plan = await self._removal(id, scope, force=force, delete=delete)
            if plan is None:
                return parts.in_spec.remove(name, id, delete=delete)
            try:
                outcome = await self._bus.remove(plan, timeout=timeout)
            except CommandError as error:
                message = f"QEMU does not let go of {id}: {error.desc}"
                raise HotplugError(message, "refused") from error
            if outcome is Removal.REMOVED and self._pending(id):
                outcome = Removal.PENDING  # QEMU itself still uses its file
        if outcome is not Removal.REMOVED:
            raise _not_removed(name, id, outcome, timeout)
        return _removed(id, plan)

    async def resize(
        self,
        id: str,
        size_bytes: int,
        *,
        relative: bool = False,
        scope: Scope = Scope.BOTH,
    ) -> ResizedDisk:
        """Gives a disk more bytes while the guest uses it (block_resize).

        ``relative`` adds them to what it has. Raises UsageError for fewer,
        StateError for a disk that is not there or read-only, CommandError.
        """
        name = self._vm.name
        if not scope.live or (scope.config and not await self._find(id)):
            return await parts.size_and_limits.resize(
                name, id, size_bytes, relative=relative
            )
        async with self._bus.changing():
            disk = await self._known(id)
            if disk.readonly:
                raise StateError(f"resize {id}", "running", "it is read-only")
            before = disk.size_bytes
            settings = parts.size_and_limits
            size = settings.new_size(before, size_bytes, relative=relative, id_=id)
            edit = settings.size_edit(name, id, size) if scope.config else None
            if edit is not None:
                preview(name, edit)
            if size > before:
                await self._grow(id, size)
            if edit is not None:
                reconfigure(name, edit)
        serial = parts.in_spec.serial_of(name, id)
        return ResizedDisk(
            id=id,
            live=True,
            configured=edit is not None,
            before_bytes=before,
            size_bytes=size,
            guest=await sight(self._vm, serial, size_bytes=size),
        )

    async def limit(
        self,
        id: str,
        *,
        iops: int | None = None,
        bytes_per_second: int | None = None,
        scope: Scope = Scope.BOTH,
    ) -> DiskLimits:
        """Limits requests and bytes a second (block_set_io_throttle).

        None leaves one as it is, 0 takes it away. Raises UsageError without
        either, SpecError, StateError, CommandError.
        """
        name = self._vm.name
        wanted = {"iops": iops, "bytes_per_second": bytes_per_second}
        if not scope.live or (scope.config and not await self._find(id)):
            return parts.size_and_limits.limit(name, id, **wanted)
        settings = parts.size_and_limits
        fields = settings.limit_fields(iops, bytes_per_second)
        async with self._bus.changing():
            disk = await self._known(id)
            edit = settings.limit_edit(name, id, fields) if scope.config else None
            if edit is not None:
                preview(name, edit)
            now = {"iops": disk.iops, "bps": disk.bytes_per_second} | fields
            await set_limits(self._vm, id, iops=now["iops"], bps=now["bps"])
            if edit is not None:
                reconfigure(name, edit)
        return DiskLimits(
            id=id,
            iops=now["iops"],
            bytes_per_second=now["bps"],
            live=True,
            configured=edit is not None,
        )

    # -- parts -------------------------------------------------------------

    def _pending(self, id: str) -> Change | None:
        changes = self._bus.journal.changes()
        return next((c for c in changes if c.removal and c.device == id), None)

    async def _find(self, id: str) -> LiveDisk | None:
        return next((disk for disk in await self.list() if disk.id == id), None)

    async def _known(self, id: str) -> LiveDisk:
        every = await self.list()
        disk = next((disk for disk in every if disk.id == id), None)
        if disk is None:
            raise parts.in_spec.no_such_disk(
                self._vm.name, id, [disk.id for disk in every]
            )
        return disk

    async def _removal(
        self, id: str, scope: Scope, *, force: bool, delete: bool
    ) -> Change | None:
        """What removing comes to, checked; None for a disk that the spec alone has."""
        name = self._vm.name
        written = parts.in_spec.disk_of(name, id) if scope.config else None
        if written is not None and await self._find(id) is None:
            return None
        disk = await self._known(id)
        if disk.driver not in _PLUGGABLE:
            raise StateError(
                f"unplug {id}", "running", f"{disk.bus} takes no hot plug",
                hint=f"from the next start on: qemuctl disk rm {name} {id} --config",
            )  # fmt: skip
        # One that came later is not what the guest has booted from.
        from_start = any(f'"id":"{id}"' in word for word in self._vm.record.argv)
        if from_start and not force and parts.in_spec.boots_from(name, id):
            raise StateError(
                f"unplug {id}", "running", "the guest runs from it",
                hint="if it does not: --force",
            )  # fmt: skip
        if written is not None:
            preview(name, parts.in_spec.removal_of(name, id))
        if delete:
            parts.in_spec.check_deletable(disk.path, name)
            parts.in_spec.check_unwritten(name, id, configured=written is not None)
        return Change(
            device=id,
            removal=True,
            nodes=(id, f"{id}-file"),
            configured="disks" if written is not None else None,
            file=str(disk.path),
            delete=delete,
        )

    async def _grow(self, id: str, size: int) -> None:
        try:
            await self._vm.execute(BlockResize(node_name=id, size=size))
        except MonitorLost:
            if (await self._known(id)).size_bytes != size:
                raise


def _live_disk(
    drive: BlockInfo, device: Plugged, *, serial: str | None, leaving: bool
) -> LiveDisk:
    medium: dict[str, Any] = drive.inserted or {}
    path = Path(medium["image"]["filename"])
    used = None
    with contextlib.suppress(OSError):
        used = path.stat().st_blocks * 512
    return LiveDisk(
        id=device.id,
        serial=serial or None,
        driver=device.driver,
        bus=device.bus,
        path=path,
        size_bytes=int(medium["image"]["virtual-size"]),
        used_bytes=used,
        readonly=bool(medium["ro"]),
        iops=medium["iops"] or None,
        bytes_per_second=medium["bps"] or None,
        io_status=drive.io_status or "ok",
        leaving=leaving,
    )


def _not_removed(name: str, id: str, outcome: Removal, timeout: float) -> HotplugError:
    if outcome is Removal.REFUSED:
        return HotplugError(f"the guest refuses to let go of {id}", outcome)
    return HotplugError(
        f"the guest has not let go of {id} in {timeout:g} s",
        outcome,
        hint="it may still do so, and a later command does the rest: "
        f"qemuctl disk rm {name} {id}",
    )


def _removed(id: str, change: Change) -> RemovedDisk:
    path = Path(change.file) if change.file else None
    return RemovedDisk(
        id=id,
        outcome=Removal.REMOVED,
        path=path,
        deleted=change.delete,
        live=True,
        configured=change.configured is not None,
    )
