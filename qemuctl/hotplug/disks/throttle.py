"""How much a disk may do in a second. QEMU keeps that with the front end, which a
spec's limits reach at each start, before the guest runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.connection.connection import Connection
from qemuctl.errors import StateError
from qemuctl.qmp.block import BlockSetIoThrottle
from qemuctl.qmp.commands import BlockInfo, QueryBlock

if TYPE_CHECKING:
    from qemuctl.qmp import Session
    from qemuctl.spec import Spec


async def set_limits(
    qemu: Connection | Session, id: str, *, iops: int | None, bps: int | None
) -> None:
    """Limits one disk (block_set_io_throttle); None is no limit.

    Raises CommandError, StateError when there is no such disk.
    """
    for drive in await qemu.execute(QueryBlock()):
        if drive.qdev is not None and device_id(drive) == id:
            await qemu.execute(
                # Of a front end with parts, the part that has the disk.
                BlockSetIoThrottle(id=drive.qdev, iops=iops or 0, bps=bps or 0)
            )
            return
    raise StateError(f"limit {id}", "running", f"there is no such disk: {id}")


async def set_all_limits(session: Session, spec: Spec) -> None:
    """Limits the disks of a resolved spec; raises as `set_limits` does."""
    for disk in spec.disks:
        if disk.id is not None and (disk.iops or disk.bps):
            await set_limits(session, disk.id, iops=disk.iops, bps=disk.bps)


def device_id(drive: BlockInfo) -> str:
    """The id of a drive's device; one with parts is named by a path to a part."""
    return (drive.qdev or "").removeprefix("/machine/peripheral/").partition("/")[0]
