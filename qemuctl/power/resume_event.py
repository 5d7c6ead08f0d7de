"""Letting a guest run, known by the event and not by the reply."""

from __future__ import annotations

import asyncio
from typing import Any

from qemuctl.connection.connection import Connection
from qemuctl.qmp.commands import Cont
from qemuctl.qmp.events import Resumed


async def let_run(vm: Connection) -> None:
    """Lets the virtual CPUs run (cont), and returns when they do (RESUME).

    An emulated guest that begins to run keeps QEMU's main loop from answering for
    some hundredths of a second. Raises as `Connection.execute` does.
    """
    session = await vm.monitor()
    with session.listen(Resumed.NAME) as events:
        told = asyncio.ensure_future(session.execute(Cont()))
        runs = asyncio.ensure_future(events.get())
        try:
            await asyncio.wait({told, runs}, return_when=asyncio.FIRST_COMPLETED)
            if told.done() or runs.exception() is not None:
                await told
        finally:
            runs.cancel()
            await asyncio.gather(runs, return_exceptions=True)
            # It runs, whatever becomes of the reply.
            told.add_done_callback(_heard)


def _heard(told: asyncio.Future[Any]) -> None:
    if not told.cancelled():
        told.exception()
