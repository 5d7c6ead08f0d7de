"""A guest that goes on where it is: nobody else has it, or is about to have it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from qemuctl.connection.connection import Connection
from qemuctl.errors import StateError
from qemuctl.process.working import free_now
from qemuctl.qmp import Session
from qemuctl.qmp.commands import QueryStatus
from qemuctl.qmp.migration import OVER, QueryMigrate, cancel
from qemuctl.registry.records.saved_marker import discard
from qemuctl.registry.states import State


@contextlib.asynccontextmanager
async def taken_back(vm: Connection) -> AsyncIterator[None]:
    """For the block, in which a guest that stands still is let run, nobody saves it.

    What a save that was killed has left is ended before, for QEMU would stop the
    guest once more at its end; its file is gone after the block. Raises StateError
    while the VM is being saved.
    """
    session = await vm.monitor()
    with free_now(vm.paths.changing) as free:
        if await _on_its_way(session):
            if not free:
                raise StateError(
                    f"resume {vm.name}", State.PAUSED, "it is being saved",
                    hint="Ctrl-C there has it go on",
                )  # fmt: skip
            await cancel(session)
        yield
        discard(vm.paths)


async def _on_its_way(session: Session) -> bool:
    if (await session.execute(QueryStatus())).status == "postmigrate":
        return True
    return (await session.execute(QueryMigrate())).status not in (None, "none", *OVER)
