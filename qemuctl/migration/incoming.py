"""A QEMU that waits for a machine's state, and for its disks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from qemuctl.boot.bring_up import Origin
from qemuctl.boot.throwaway import Attached, begin
from qemuctl.durable import sync, sync_tree
from qemuctl.errors import MonitorLost, QemuctlError, WaitTimeout
from qemuctl.image import store
from qemuctl.image.overlay import create_disk, create_overlay
from qemuctl.migration import tls
from qemuctl.migration.arrival import Mark, accept, finish, step
from qemuctl.migration.arrivals import Arrival
from qemuctl.migration.offer import DiskOffer, Offer
from qemuctl.paths import VmPaths, private_dir, vms_dir
from qemuctl.qmp.commands import QueryStatus
from qemuctl.qmp.migration import (
    OVER,
    MigrateIncoming,
    MigrateSetParameters,
    Migration,
    MigrationFailed,
    QueryMigrate,
    reached,
    set_capabilities,
)
from qemuctl.qmp.nbd import BlockExportAdd, NbdServerStart, NbdServerStop
from qemuctl.qmp.session import Session, Subscription
from qemuctl.registry.disks.disk_files import date_seed
from qemuctl.registry.plan import Stages
from qemuctl.registry.records.disk_ledger import remember
from qemuctl.snapshots.topology import unlike
from qemuctl.spec import parse_spec, resolve_paths
from qemuctl.tail import tail
from qemuctl.thread import Tick, beside, in_thread

# Seconds for QEMU to answer at all.
_LIFE = 15.0
# Seconds for what has left the other side to be taken in here.
_ARRIVAL = 60.0


class Incoming:
    """One machine on its way in."""

    def __init__(self, offer: Offer, attached: Attached) -> None:
        self._offer, self._attached = offer, attached
        self._stack = contextlib.ExitStack()
        self._events: Subscription | None = None
        self._armed = False
        self.addresses: dict[str, Any] = {}

    @classmethod
    async def begin(
        cls, offer: Offer, staged: Path | None, progress: Stages
    ) -> Incoming:
        """Makes its disks and starts a QEMU like the one that it leaves. Raises as a
        start does; nothing is left then."""
        paths = VmPaths.of(offer.name)
        spec = resolve_paths(
            parse_spec(offer.spec, source="the spec of what runs", name=offer.name),
            paths.state,
        )
        attached = await begin(
            spec, offer.name, furnish=partial(_furnish, offer, staged),
            progress=progress, origin=Origin(shape=offer.shape),
        )  # fmt: skip
        incoming = cls(offer, attached)
        try:
            mark = Mark(
                token=offer.token,
                undertaker=attached.undertaker.process,
                forwards=offer.forwards,
            )
            noted = in_thread(partial(_noted, attached.vm.paths, mark))
            async with beside(noted) as noting:
                await incoming._open()
                await noting
        except BaseException:
            await asyncio.shield(incoming.end())
            raise
        return incoming

    async def _open(self) -> None:
        vm, offer = self._attached.vm, self._offer
        session = await vm.monitor()
        found, _ = await asyncio.gather(
            unlike(vm.bus, offer.topology),
            set_capabilities(session, *offer.capabilities),
        )
        if found:
            raise QemuctlError(f"the machine would be another one: {'; '.join(found)}")
        if offer.multifd_channels or offer.multifd_compression:
            await session.execute(
                MigrateSetParameters(
                    multifd_channels=offer.multifd_channels,
                    multifd_compression=offer.multifd_compression,
                )
            )
        if offer.tls is not None:
            await tls.add_credentials(session, Path(offer.tls), "server")
            await tls.authorize(session, offer.tls_client or "")
            await session.execute(
                MigrateSetParameters(tls_creds=tls.CREDS, tls_authz=tls.AUTHZ)
            )
        if offer.disks:
            await self._serve(session)
        self._events = self._stack.enter_context(session.listen(Migration.NAME))
        await self._listen(session)

    async def _serve(self, session: Session) -> None:
        if self._offer.tls is not None:
            self.addresses["nbd"] = await tls.serve_disks(session, tls.own_address())
        else:
            nbd = self._attached.vm.paths.run / "nbd"
            await session.execute(NbdServerStart.on(nbd))
            self.addresses["nbd"] = str(nbd)
        for disk in self._offer.disks:
            await session.execute(BlockExportAdd.of(disk.id))

    async def _listen(self, session: Session) -> None:
        if self._offer.tls is not None:
            await session.execute(
                MigrateIncoming(uri=tls.memory_at(tls.own_address(), 0))
            )
            info = await session.execute(QueryMigrate())
            self.addresses["ram"] = int((info.socket_address or [])[0]["port"])
            return
        ram = self._attached.vm.paths.run / "ram"
        await session.execute(MigrateIncoming(uri=f"unix:{ram}"))
        self.addresses["ram"] = str(ram)

    async def released(self) -> None:
        """The disks have come: nobody writes to them from outside any more
        (nbd-server-stop)."""
        if self._offer.disks:
            await self._attached.vm.execute(NbdServerStop())

    async def arrived(self) -> None:
        """Waits until QEMU has taken in all of it. Raises QemuctlError with its
        words where it cannot."""
        assert self._events is not None
        vm = self._attached.vm
        try:
            async with asyncio.timeout(_ARRIVAL):
                status = await reached(self._events, OVER)
        except TimeoutError as error:
            stage = "QEMU to take in the machine's state"
            raise WaitTimeout(stage, _ARRIVAL) from error
        except MonitorLost as error:
            words = tail(vm.paths.qemu_log, 5).strip() or error.message
            raise QemuctlError(f"QEMU cannot take in the state: {words}") from error
        if status != "completed":
            info = await vm.execute(QueryMigrate())
            raise MigrationFailed(
                f"QEMU cannot take in the state: {info.error_desc or status}"
            )

    async def sign_of_life(self) -> None:
        """Raises QmpError or WaitTimeout where QEMU does not answer."""
        if not self._armed:
            await self._attached.vm.execute(QueryStatus(), timeout=_LIFE)

    async def arm(self) -> None:
        """From here on it outlives us; its guest takes no step yet. Raises QemuctlError
        and OSError where it cannot be: it is as it was then."""
        if self._armed:
            return
        attached = self._attached
        # It outlives us, but not yet its QEMU.
        attached.child.detach()
        accept(attached.vm.paths, self._offer.token)
        self._armed = True
        await attached.undertaker.dismiss()

    async def go(self, *, running: bool) -> None:
        """It is a VM of this home, and its guest takes steps. Raises QemuctlError
        where it cannot be: `arrival.ask` tells what it is then."""
        await self.arm()
        await step(self._attached.vm, self._offer.token, running=running)

    async def end(self) -> None:
        """Removes it unless it has become a VM of this home."""
        self._stack.close()
        # Even where the disk was full in the moment in which it was accepted.
        if self._armed or Arrival.read(self._offer.token) is not None:
            await self._attached.vm.close()
            with contextlib.suppress(QemuctlError):  # else whoever asks does it
                await finish(self._offer.token)
        elif self._attached.child.pipe < 0:  # it is detached by now
            with contextlib.suppress(QemuctlError):
                await self._attached.vm.power.kill()
            await self._attached.undertaker.done()
        else:
            await self._attached.end()


async def _furnish(offer: Offer, staged: Path | None, paths: VmPaths) -> None:
    await in_thread(partial(_put, offer, staged, paths))


def _put(offer: Offer, staged: Path | None, paths: VmPaths, tick: Tick) -> None:
    paths.spec.write_text(offer.configured)
    paths.lock.touch(0o600)
    paths.booted.touch()
    if offer.ballooned is not None:
        paths.ballooned.write_text(f"{offer.ballooned}\n")
    for file in sorted(staged.iterdir()) if staged is not None else ():
        tick()
        shutil.move(file, paths.state / file.name)
    date_seed(paths)
    for disk in offer.disks:
        tick()
        _make(disk, paths.state / disk.file)
        remember(paths.state / disk.file, paths, durable=False)


def _noted(paths: VmPaths, mark: Mark, tick: Tick) -> None:
    """Has all of its folder be on the disk, but for what the source writes to the disks
    and has flushed at the end (QEMU's mirror job): nothing of this is left to do while
    the guest stands still."""
    sync_tree(paths.state, tick)
    sync(vms_dir())
    mark.write(paths)


def _make(disk: DiskOffer, path: Path) -> None:
    private_dir(path.parent)
    if disk.backing_format is None:
        create_disk(path, disk.format, disk.size)
        return
    below = Path(disk.backing_path or "")
    if disk.backing_image is not None:
        found = store.find(disk.backing_image).disk
        if found is None:
            raise QemuctlError(f"the image has no disk: {disk.backing_image}")
        below = found
    create_overlay(path, below, disk.backing_format, disk.size)
