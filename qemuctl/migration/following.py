"""Postcopy: the guest runs there, and the memory that it misses follows.

Neither side has all of it until the last page has come. A link that is lost pauses
both QEMUs; on another one they go on (migrate-recover, migrate with resume).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qemuctl.errors import QemuctlError
from qemuctl.qmp.migration import (
    OVER,
    Migrate,
    MigratePause,
    Migration,
    QueryMigrate,
    reached,
)
from qemuctl.qmp.session import Session, Subscription
from qemuctl.waiting import waiting_for

if TYPE_CHECKING:
    from qemuctl.migration.link import Link
    from qemuctl.vm.vm import Vm

ACTIVE, PAUSED = "postcopy-active", "postcopy-paused"
# Seconds for the answer of a receiver that has QEMU listen anew.
_ANSWER = 30.0
# Seconds in which a link that still carries something shows it.
_SIGN = 2.0
# Seconds in which a link that is only slow carries something.
_STALL = 60.0


async def followed(session: Session, events: Subscription) -> None:
    """Waits until all of the memory has followed. Raises QemuctlError when the link
    is lost, or nothing comes through: then it waits for another one."""
    sent = -1
    with waiting_for("the rest of the guest's memory to follow"):
        while True:
            try:
                async with asyncio.timeout(_STALL):
                    status = await reached(events, {PAUSED})
                break
            except TimeoutError:
                before, sent = sent, await _sent(session)
                if sent == before:
                    # QEMU tells of a link that has gone, not of one that is stuck.
                    await session.execute(MigratePause())
    if status != "completed":
        raise QemuctlError(f"the link was lost while its memory followed ({status})")


async def resume(vm: Vm, link: Link, token: str) -> None:
    """Has the rest follow on a new link, if there is a rest. Raises QemuctlError."""
    session = await vm.monitor()
    with session.listen(Migration.NAME) as events:
        status = await _still(session, events)
        if status == "completed":
            return
        if status != PAUSED:
            raise QemuctlError(f"what its guest there misses cannot follow: {status}")
        told = await link.channel.ask("reconnect", timeout=_ANSWER, token=token)
        ram = await link.socket(told["ram"], "ram2")
        await session.execute(Migrate(uri=f"unix:{ram}", resume=True))
        await followed(session, events)


async def _sent(session: Session) -> int:
    ram = (await session.execute(QueryMigrate())).ram
    return ram.transferred if ram is not None else 0


async def _still(session: Session, events: Subscription) -> str:
    """The status once it goes nowhere by itself: it is over, or paused."""
    before = None
    while True:
        info = await session.execute(QueryMigrate())
        status, sent = info.status or "none", info.ram.transferred if info.ram else 0
        if status == PAUSED or status in OVER or not status.startswith("postcopy"):
            return status
        if before == sent:
            # Nothing comes through: the link has gone, and nobody has said so.
            await session.execute(MigratePause())
            return await reached(events, {PAUSED})
        before = sent
        # QEMU has no event for what has been carried.
        await asyncio.sleep(_SIGN)
