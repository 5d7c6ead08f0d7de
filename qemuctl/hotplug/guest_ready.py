"""Whether a guest is there that hears what is plugged in or out, and what it answers.

QEMU does not know. The agent's port and the balloon's driver tell of a guest that
has booted; what is offered to firmware, or to a kernel that is still busy
with itself, would lie there and could not even be taken away again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from qemuctl import qmp
from qemuctl.connection.agent_port import agent_port_open
from qemuctl.connection.connection import Connection
from qemuctl.errors import (
    AgentError,
    CommandError,
    HotplugError,
    MonitorLost,
    QemuctlError,
    StateError,
    UnexpectedExit,
    WaitTimeout,
)
from qemuctl.hotplug.balloon_stats import INTERVAL, POLL, STATS, GuestMemory, parsed
from qemuctl.hotplug.unplug import Removal
from qemuctl.qmp import Event, eventlog
from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import Reset, TypedEvent
from qemuctl.qmp.plug import AcpiDeviceOst
from qemuctl.registry.records.hotplug_journal import Change

if TYPE_CHECKING:  # loaded when it is used
    from qemuctl.hotplug.bus import Bus

T = TypeVar("T")

# Seconds that an agent gets: it is asked only where it is there.
AGENT_PATIENCE = 5.0
# Seconds that there are to undo something once nobody waits for it any more.
BRIEF = 4.0
# Seconds between looks, after each that saw nothing new twice as many: QEMU holds
# back what changes for a second after an event of it, also the last change.
_LOOK_FIRST, _LOOK_MOST = 0.02, 1.0


async def require_guest(vm: Connection, action: str) -> None:
    """Raises StateError unless the guest has shown that it has booted."""
    if agent_port_open(vm.paths) or await has_driver(vm):
        return
    raise StateError(
        action, "running", "its guest has neither agent nor balloon driver up",
        hint=f"if it still boots: qemuctl wait {vm.name}; for its next start: --config",
    )  # fmt: skip


async def has_driver(vm: Connection) -> bool:
    """Whether the guest has a driver for its balloon (qom-get guest-stats): it says
    something when it is loaded, and nothing before."""
    try:
        stats = parsed(await vm.execute(STATS))
    except CommandError:
        return False
    resets = (e.at for e in eventlog.past(vm.paths.events) if e.name == Reset.NAME)
    return stats is not None and stats.at + 1 > max(resets, default=0.0)


async def fresh_stats(vm: Connection, *, timeout: float = 2.0) -> GuestMemory | None:
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
    vm: Connection, name: str, arguments: dict[str, Any] | None = None
) -> Any | None:
    """What the agent answers; None where it is not there or does not know."""
    if not agent_port_open(vm.paths):
        return None
    try:
        return await vm.agent.request(name, arguments, timeout=AGENT_PATIENCE)
    except (AgentError, WaitTimeout):
        return None


async def again(vm: Connection, command: Command[Any]) -> None:
    """Sends a command that may be sent twice; once more when the monitor went away
    in the middle, for then nobody knows whether QEMU has got it."""
    try:
        await vm.execute(command)
    except MonitorLost:
        await vm.execute(command)


async def device_add(bus: Bus, arguments: dict[str, Any]) -> None:
    """Plugs a device in; where the monitor goes away in the middle, looks whether it
    is there. Raises CommandError and MonitorLost."""
    try:
        await bus.connection.command("device_add", arguments)
    except MonitorLost:
        if arguments["id"] not in await bus.devices():
            raise


async def accepted(
    vm: Connection, seen: int, device: str, timeout: float
) -> bool | None:
    """What the guest says of a processor or a DIMM that was plugged in, behind ``seen``
    in the event file (ACPI_DEVICE_OST); None when it says nothing. Raises
    UnexpectedExit."""

    def wanted(event: Event) -> bool:
        if event.name != AcpiDeviceOst.NAME:
            return False
        said = AcpiDeviceOst.of(event)
        return said.device == device and not said.of_removal

    try:
        event = await vm.unless_ended(
            qmp.eventstream.after(seen, vm.paths.events, wanted), timeout
        )
    except TimeoutError:
        return None
    return not AcpiDeviceOst.of(event).refused


# -- taking out, and taking back -------------------------------------------


async def let_go(bus: Bus, change: Change, *, timeout: float) -> Removal:
    """As `Bus.remove`, where REMOVED means that its back ends have gone too.

    Raises HotplugError, ``refused``, where QEMU itself does not take it out.
    """
    try:
        removal = await bus.remove(change, timeout=timeout)
    except CommandError as error:
        raise HotplugError(
            f"{change.device} cannot be taken out of {bus.connection.name}: "
            f"{error.desc}",
            "refused",
            hint="once its guest has booted and is idle, try again",
        ) from error
    begun = {each.device for each in bus.journal.changes()}
    if removal is Removal.REMOVED and change.device in begun:
        return Removal.PENDING
    return removal


async def take_back(bus: Bus, change: Change, *, timeout: float) -> tuple[str, str]:
    """Takes out again what the guest did not want, also when we are cut off.

    Gives the outcome of the whole, and what is to be said of the device: nothing
    where it has gone.
    """
    device = change.device
    try:
        removal = await carried_out(let_go(bus, change, timeout=timeout))
    except HotplugError as error:
        return "refused", f"; {device} is still there: {error.message}"
    if removal is Removal.REMOVED:
        return "refused", ""
    if removal is Removal.PENDING:
        return "pending", f"; {device} is still to go"
    return "refused", f"; {device} is still there"


@contextlib.asynccontextmanager
async def gone_if_cut_off(bus: Bus, change: Change) -> AsyncIterator[None]:
    """The block plugs in the device of ``change``, and hears what its guest makes of
    it; when it does not come to its end, the device is asked back."""
    try:
        yield
    except (CommandError, StateError, UnexpectedExit):
        raise  # QEMU itself did not take it, or has ended
    except BaseException:
        await carried_out(give_up(bus, change, timeout=BRIEF))
        raise


async def give_up(bus: Bus, change: Change, *, timeout: float) -> bool:
    """Takes out what nobody waits for, if it is there; tells whether it has gone."""
    with contextlib.suppress(QemuctlError, OSError):  # we have another error to tell
        async with asyncio.timeout(timeout + 1.0):
            if not await bus.there(change.device):
                return True
            removal = await let_go(bus, change, timeout=timeout)
            return removal is Removal.REMOVED
    return False


async def carried_out(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which has a few seconds more to come to its end when
    we are cut off meanwhile."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        end = loop.time() + BRIEF
        while not task.done():  # however often we are told
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=max(end - loop.time(), 0.0))
            if loop.time() >= end:
                task.cancel()
                end = loop.time() + 1.0
        if not task.cancelled():
            task.exception()  # nobody is there to hear of it
        raise


async def settles(
    vm: Connection,
    event: type[TypedEvent],
    read: Callable[[], Coroutine[Any, Any, int]],
    wanted: int,
    *,
    timeout: float,
    stall: float,
) -> int:
    """The number that ``read`` gives, once it is ``wanted`` or comes no nearer.

    Asked again at each ``event``, and now and then; ended by ``stall`` seconds without
    a change, or ``timeout`` in all. Raises UnexpectedExit, and what else ``read`` does.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    value, moved, pause = None, loop.time(), _LOOK_FIRST
    while True:
        with contextlib.closing(
            qmp.eventstream.upcoming(vm.paths.events, event.NAME)
        ) as coming:
            now = value
            with contextlib.suppress(MonitorLost):  # the next look tells
                now = await vm.unless_ended(read())
            if now != value:
                value, moved, pause = now, loop.time(), _LOOK_FIRST
            left = min(end, moved + stall) - loop.time()
            if value == wanted or (left <= 0 and value is not None):
                return value
            with contextlib.suppress(TimeoutError):
                await vm.unless_ended(coming, max(0.01, min(left, pause)))
            pause = min(2 * pause, _LOOK_MOST)
