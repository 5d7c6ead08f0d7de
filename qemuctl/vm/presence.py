"""Whether a guest is there that hears what is plugged in or out.

QEMU does not know. The agent's port and the balloon's driver tell of a guest that
has booted; what is offered to firmware, or to a kernel that is still busy
with itself, would lie there and could not even be taken away again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from qemuctl.errors import (
    AgentError,
    CommandError,
    MonitorLost,
    StateError,
    WaitTimeout,
)
from qemuctl.qmp import eventlog, eventstream
from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import Reset, TypedEvent
from qemuctl.vm.balloon_stats import INTERVAL, POLL, STATS, GuestMemory, parsed
from qemuctl.vm.vm import agent_port_open

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

# Seconds that an agent gets: it is asked only where it is there.
AGENT_PATIENCE = 5.0
# Seconds between looks: events are limited to one a second, and the last one
# may have come before the first look.
_LOOK = 1.0


async def require_guest(vm: Vm, action: str) -> None:
    """Raises StateError unless the guest has shown that it has booted."""
    if agent_port_open(vm.paths.events) or await has_driver(vm):
        return
    raise StateError(
        action, "running", "its guest has neither agent nor balloon driver up",
        hint=f"if it still boots: qemuctl wait {vm.name}; for its next start: --config",
    )  # fmt: skip


async def has_driver(vm: Vm) -> bool:
    """Whether the guest has a driver for its balloon (qom-get guest-stats): it says
    something when it is loaded, and nothing before."""
    try:
        stats = parsed(await vm.execute(STATS))
    except CommandError:
        return False
    resets = (e.at for e in eventlog.past(vm.paths.events) if e.name == Reset.NAME)
    return stats is not None and stats.at + 1 > max(resets, default=0.0)


async def fresh_stats(vm: Vm, *, timeout: float = 2.0) -> GuestMemory | None:
    """What the guest's balloon driver says now; None when it says nothing in time.

    A new polling interval makes QEMU ask at once (qom-set
    guest-stats-polling-interval).
    """
    begun = time.time()
    off = type(POLL)(path=POLL.path, property=POLL.property, value=0)
    try:
        if await vm.execute(INTERVAL):
            await vm.execute(off)
        await vm.execute(POLL)
        while time.time() < begun + timeout:
            stats = parsed(await vm.execute(STATS))
            if stats is not None and stats.at >= int(begun):
                return stats
            # No event tells that an answer has come.
            await asyncio.sleep(0.05)
    except CommandError:
        pass
    return None


async def ask_agent(
    vm: Vm, name: str, arguments: dict[str, Any] | None = None
) -> Any | None:
    """What the agent answers; None where it is not there or does not know."""
    if not agent_port_open(vm.paths.events):
        return None
    try:
        return await vm.agent.request(name, arguments, timeout=AGENT_PATIENCE)
    except (AgentError, WaitTimeout):
        return None


async def again(vm: Vm, command: Command[Any]) -> None:
    """Sends a command that may be sent twice; once more when the monitor went away
    in the middle, for then nobody knows whether QEMU has got it."""
    try:
        await vm.execute(command)
    except MonitorLost:
        await vm.execute(command)


async def device_add(vm: Vm, arguments: dict[str, Any]) -> None:
    """Plugs a device in; where the monitor goes away in the middle, looks whether it
    is there. Raises CommandError and MonitorLost."""
    try:
        await vm.command("device_add", arguments)
    except MonitorLost:
        if arguments["id"] not in await vm.live.devices():
            raise


async def settles(
    vm: Vm,
    event: type[TypedEvent],
    read: Callable[[], Coroutine[Any, Any, int]],
    wanted: int,
    *,
    timeout: float,
    stall: float,
) -> int:
    """The number that ``read`` gives, once it is ``wanted`` or comes no nearer.

    Asked again at each ``event``; ended by ``stall`` seconds without a change, or
    ``timeout`` in all. Raises UnexpectedExit.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    value, moved = None, loop.time()
    while True:
        coming = eventstream.upcoming(vm.paths.events, event.NAME)
        now = value
        with contextlib.suppress(MonitorLost):  # the next look tells
            now = await read()
        if now != value:
            value, moved = now, loop.time()
        left = min(end, moved + stall) - loop.time()
        if value == wanted or (left <= 0 and value is not None):
            coming.close()
            return value
        with contextlib.suppress(TimeoutError):
            await vm.unless_ended(coming, max(0.01, min(left, _LOOK)))
