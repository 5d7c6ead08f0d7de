"""What a guest's agent does for a snapshot: hold its file systems still, and set its
clock after it has gone back in time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qemuctl.errors import AgentError, AgentRefused, QemuctlError, WaitTimeout
from qemuctl.vm.agent_port import agent_port_open
from qemuctl.vm.states import State

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

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
# Seconds in which a guest that has just gone back in time shows that it has an
# agent, and in which that one does what it is asked for.
_PORT_PATIENCE = 1.0
_CLOCK_PATIENCE = 5.0


@contextlib.asynccontextmanager
async def frozen(vm: Vm) -> AsyncIterator[bool]:
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


async def offers_freezing(vm: Vm) -> bool:
    """Whether the guest runs and its agent has freezing (guest-info)."""
    if await vm.state() is not State.RUNNING or not agent_port_open(vm.paths):
        return False
    try:
        info: Any = await vm.agent.request("guest-info", timeout=_PATIENCE)
        offered = {one["name"] for one in info["supported_commands"] if one["enabled"]}
    except (AgentError, WaitTimeout, LookupError, TypeError):
        return False
    return {_FREEZE, _THAW, _STATUS} <= offered


async def _freeze(vm: Vm) -> bool:
    try:
        await vm.agent.request(_FREEZE, timeout=_FREEZING)
    except AgentRefused:
        return False
    except (AgentError, WaitTimeout):
        # The reply is lost, and what became of the request is for the agent to say.
        return await _status(vm) == "frozen"
    return True


async def _status(vm: Vm) -> str | None:
    try:
        return str(await vm.agent.request(_STATUS, timeout=_PATIENCE))
    except (AgentError, WaitTimeout):
        return None


async def thaw(vm: Vm) -> None:
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


async def set_clock(vm: Vm) -> str | None:
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
