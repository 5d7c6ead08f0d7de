"""The CD-ROM drive of a running VM: a medium in, a medium out."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from qemuctl.cmdline.qapi import to_qapi
from qemuctl.cmdline.storage import CDROM, cdrom_node
from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, StateError
from qemuctl.image.iso import check_iso
from qemuctl.qmp import eventstream
from qemuctl.qmp.commands import (
    BlockdevCloseTray,
    BlockdevDel,
    BlockdevInsertMedium,
    BlockdevOpenTray,
    BlockdevRemoveMedium,
    BlockInfo,
    QueryBlock,
)

# Seconds that a guest gets to let go of a medium that it was asked for.
PATIENCE = 5.0


class Cdrom:
    """``vm.cdrom``: the drive that the spec's `cdrom` gave the VM."""

    def __init__(self, vm: Connection) -> None:
        self._vm = vm

    async def eject(self, *, force: bool = False) -> bool:
        """Takes the medium out (blockdev-open-tray, blockdev-remove-medium).

        Gives False when there was none. A guest that uses it is asked first,
        and only ``force`` takes it away all the same. Raises StateError when
        the guest does not let go, or there is no drive.
        """
        drive = await self._drive()
        node = _node(drive)
        if node is None:
            return False
        await self._open(drive, force=force)
        await self._vm.execute(BlockdevRemoveMedium(id=CDROM))
        await self._drop(node)
        # Empty and closed, as most drives are.
        await self._vm.execute(BlockdevCloseTray(id=CDROM))
        return True

    async def insert(self, path: Path, *, force: bool = False) -> None:
        """Puts a CD image into the drive, in the place of what is in it.

        Raises ImageError for a file that is none, and as `eject` does; the old
        medium is then still there.
        """
        await asyncio.to_thread(check_iso, path)
        drive = await self._drive()
        name = f"{CDROM}-{os.urandom(3).hex()}"
        try:
            for node in cdrom_node(path.absolute(), name):
                await self._vm.command("blockdev-add", to_qapi(node))
            await self._open(drive, force=force)
            await self._vm.execute(BlockdevRemoveMedium(id=CDROM))
            await self._vm.execute(BlockdevInsertMedium(id=CDROM, node_name=name))
        except BaseException:
            await asyncio.shield(self._drop(name))
            raise
        await self._vm.execute(BlockdevCloseTray(id=CDROM))
        old = _node(drive)
        if old is not None:
            await self._drop(old)

    async def _drive(self) -> BlockInfo:
        for drive in await self._vm.execute(QueryBlock()):
            if drive.qdev is not None and drive.qdev.rpartition("/")[2] == CDROM:
                return drive
        action = f"change the medium of {self._vm.name}"
        raise StateError(
            action, "running", "it has no CD-ROM drive",
            hint="a drive comes with the next start, when the spec has one",
        )  # fmt: skip

    async def _open(self, drive: BlockInfo, *, force: bool) -> None:
        if drive.tray_open:
            return
        if drive.locked and not force:
            # It is only asked; the event tells that it has let go.
            moved = eventstream.upcoming(self._vm.paths.events, "DEVICE_TRAY_MOVED")
            await self._vm.execute(BlockdevOpenTray(id=CDROM))
            with contextlib.suppress(TimeoutError):
                await self._vm.unless_ended(moved, PATIENCE)
        else:
            await self._vm.execute(BlockdevOpenTray(id=CDROM, force=force))
        if not (await self._drive()).tray_open:
            raise StateError(
                f"eject the medium of {self._vm.name}", "running",
                "its guest is using it",
                hint="unmount it in the guest, or take it away with --force",
            )  # fmt: skip

    async def _drop(self, name: str) -> None:
        """Closes a medium's file, as far as its nodes are there."""
        for node in (name, f"{name}-file"):
            with contextlib.suppress(CommandError):
                await self._vm.execute(BlockdevDel(node_name=node))


def _node(drive: BlockInfo) -> str | None:
    """The block node in a drive."""
    return str(drive.inserted["node-name"]) if drive.inserted else None
