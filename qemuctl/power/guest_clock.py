"""Setting a guest's clock after it has stood still, or gone back in time."""

from __future__ import annotations

import asyncio
import time

from qemuctl.connection.connection import Connection
from qemuctl.errors import QemuctlError

# Seconds that the agent gets to say whether it is there.
_PATIENCE = 2.0
# Seconds in which a guest that has just gone back in time shows that it has an
# agent, and in which that one does what it is asked for.
_PORT_PATIENCE = 1.0
_CLOCK_PATIENCE = 5.0


async def set_clock(vm: Connection) -> str | None:
    """Sets the clock of a guest that runs to the host's, by its agent (date -u -s);
    gives why that did not come about, or None."""
    try:
        # QEMU tells so once the guest has gone on.
        async with asyncio.timeout(_PORT_PATIENCE):
            await vm.unless_ended(vm.port_opened())
    except TimeoutError:
        return "its agent is not there"
    except QemuctlError as error:
        return error.message
    try:
        async with asyncio.timeout(_CLOCK_PATIENCE):
            await vm.agent.ping(timeout=_PATIENCE)
            # guest-set-time starts hwclock, which may take seconds.
            now = f"@{time.time():.0f}"
            result = await vm.agent.run(["date", "-u", "-s", now])
    except (QemuctlError, TimeoutError) as error:
        return str(error) or "its agent does not answer in time"
    return None if result.ok else result.stderr.decode(errors="replace").strip()
