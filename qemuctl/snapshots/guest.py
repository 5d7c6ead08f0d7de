"""What a guest's agent does for a snapshot: hold its file systems still, and set its
clock after it has gone back in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from qemuctl.connection.agent_port import agent_port_open
from qemuctl.connection.connection import Connection
from qemuctl.errors import AgentError, AgentRefused, WaitTimeout
from qemuctl.registry.states import State

_FREEZE, _THAW, _STATUS = (
    f"guest-fsfreeze-{verb}" for verb in ("freeze", "thaw", "status")
)
# Seconds that the agent gets to say what it can, to freeze (which writes all that is
# not on the disks yet), and to thaw.
_PATIENCE = 2.0
_FREEZING = 30.0
_THAWING = 10.0
# Seconds between questions to an agent that has not thawed: it has no events.
_ASK_EVERY = 0.2


@contextlib.asynccontextmanager
async def frozen(vm: Connection) -> AsyncIterator[bool]:
    """For the block, the guest writes nothing, and what it had to write is written;
    tells whether it is so (guest-fsfreeze-freeze).

    It is thawed again whatever happens. Raises AgentError, once the block is done,
    where nobody can tell that it was.
    """
    if not await offers_freezing(vm):
        yield False
        return
    try:
        done = await _freeze(vm)
        yield done
    except BaseException:
        with contextlib.suppress(AgentError):
            await asyncio.shield(thaw(vm))
        raise
    await asyncio.shield(thaw(vm))


async def offers_freezing(vm: Connection) -> bool:
    """Whether the guest runs and its agent has freezing (guest-info)."""
    if await vm.state() is not State.RUNNING or not agent_port_open(vm.paths):
        return False
    try:
        info: Any = await vm.agent.request("guest-info", timeout=_PATIENCE)
        offered = {one["name"] for one in info["supported_commands"] if one["enabled"]}
    except (AgentError, WaitTimeout, LookupError, TypeError):
        return False
    return {_FREEZE, _THAW, _STATUS} <= offered


async def _freeze(vm: Connection) -> bool:
    try:
        await vm.agent.request(_FREEZE, timeout=_FREEZING)
    except AgentRefused:
        return False
    except (AgentError, WaitTimeout):
        # The reply is lost, and what became of the request is for the agent to say.
        return await _status(vm) == "frozen"
    return True


async def _status(vm: Connection) -> str | None:
    try:
        return str(await vm.agent.request(_STATUS, timeout=_PATIENCE))
    except (AgentError, WaitTimeout):
        return None


async def thaw(vm: Connection) -> None:
    """Lets the guest write again (guest-fsfreeze-thaw), as often as it takes.

    Raises AgentError when it does not say that it does.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_THAWING):
            while True:
                # An agent that was not frozen, or is by now, says so or refuses.
                with contextlib.suppress(AgentError, WaitTimeout):
                    await vm.agent.request(_THAW, timeout=_PATIENCE)
                if await _status(vm) == "thawed":
                    return
                await asyncio.sleep(_ASK_EVERY)
    raise AgentError(
        f"the file systems of {vm.name} may still be frozen: its agent does not "
        "say that they are not",
        hint=f"if they stay so: qemuctl reset {vm.name}",
    )
