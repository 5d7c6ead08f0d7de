"""Pause, resume, reset, reboot, stop and kill."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qemuctl import power, qmp
from qemuctl.connection.agent_port import agent_port_open
from qemuctl.connection.connection import Connection
from qemuctl.errors import QmpError, StateError, WaitTimeout
from qemuctl.paths import VmPaths
from qemuctl.qmp import eventlog
from qemuctl.qmp.commands import Cont, QueryStatus, Stop, SystemReset
from qemuctl.qmp.events import Reset, Resumed, Stopped
from qemuctl.registry.records.disk_errors import last_disk_error
from qemuctl.registry.records.migration_journal import check_here
from qemuctl.registry.states import Action, State, require

if TYPE_CHECKING:  # loaded when it is used
    from qemuctl.power.stop import Stopping, StopReport

REBOOT_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0
# Seconds for QEMU to do at once what it is told.
_AT_ONCE = 5.0
# Seconds for it to let the CPUs run.
_GOES_ON = 1.0
# Seconds for a guest that was asked to reboot, and does.
_ASK_EVERY = 15.0
# Seconds in which a disk that still fails does so after `cont`.
_FAILS_AGAIN = 0.5
# Seconds that a guest's clock may be behind after a pause.
_BEHIND_MOST = 1.0


class Power:
    """The power facet of one VM."""

    def __init__(self, vm: Connection) -> None:
        self._vm = vm

    async def _admitted(self, action: Action) -> bool:
        """Whether there is something to do. Raises StateError when denied."""
        return require(action, await self._vm.state(), self._vm.name) is None

    async def pause(self) -> bool:
        """Stops the virtual CPUs (QMP stop); False when they were stopped."""
        if not await self._admitted(Action.PAUSE):
            return False
        check_here(self._vm.paths, Action.PAUSE)
        session = await self._vm.monitor()
        with session.listen(Stopped.NAME) as events:
            await session.execute(Stop())
            with self._vm.deadline("QEMU to stop the CPUs", _AT_ONCE):
                await self._vm.unless_ended(events.get(), _AT_ONCE)
        return True

    async def resume(self) -> bool:
        """Lets the virtual CPUs run (QMP cont); False when they did.

        After a stop of more than a second, whatever its reason, the guest's agent
        sets its clock: `Connection.close` waits for that, and `Connection.clock` tells.
        Raises StateError while the VM is being saved, and when QEMU does not go on, as
        after a disk error whose cause is still there.
        """
        if not await self._admitted(Action.RESUME):
            return False
        check_here(self._vm.paths, Action.RESUME)
        stopped = _stopped_at(self._vm.paths)
        async with power.taken_back(self._vm):
            done = await self._resume()
        behind = time.time() - stopped if stopped is not None else 0
        if behind > _BEHIND_MOST and agent_port_open(self._vm.paths):
            self._vm.clock = asyncio.create_task(power.set_clock(self._vm))
        return done

    async def _resume(self) -> bool:
        session = await self._vm.monitor()
        status = (await session.execute(QueryStatus())).status
        if status == "suspended":
            # The guest sleeps (ACPI S3); `cont` would leave it asleep.
            await session.command("system_wakeup")
            return True
        with (
            session.listen(Resumed.NAME) as events,
            session.listen(Stopped.NAME) as stops,
        ):
            await session.execute(Cont())
            with contextlib.suppress(TimeoutError):
                await self._vm.unless_ended(events.get(), _GOES_ON)
            if status == "io-error":
                # The request that failed is tried again, which may fail again.
                with contextlib.suppress(TimeoutError):
                    await self._vm.unless_ended(stops.get(), _FAILS_AGAIN)
        info = await session.execute(QueryStatus())
        if not info.running:
            raise self._stays(info.status)
        return True

    def _stays(self, status: str) -> StateError:
        action, reason = f"resume {self._vm.name}", f"QEMU stays {status}"
        error = last_disk_error(self._vm.paths.events)
        if status != "io-error" or error is None:
            return StateError(action, status, reason)
        return StateError(action, status, f"the disk fails again: {error}",
                          hint=error.hint)  # fmt: skip

    async def reset(self) -> None:
        """Presses the reset button (QMP system_reset): the guest is not asked."""
        await self._admitted(Action.RESET)
        check_here(self._vm.paths, Action.RESET)
        session = await self._vm.monitor()
        with session.listen(Reset.NAME) as events:
            await session.execute(SystemReset())
            with self._vm.deadline("QEMU to reset", _AT_ONCE):
                await self._vm.unless_ended(events.get(), _AT_ONCE)

    async def reboot(self, *, timeout: float = REBOOT_TIMEOUT) -> str | None:
        """Asks the guest to reboot, by its agent or else by Ctrl-Alt-Del.

        Returns ``agent`` or ``keyboard``, whichever was asked last, once QEMU
        reports the reset; None for a guest that reset itself before it was asked.
        One that is still booting refuses, or takes no notice, so it is asked
        again. Raises WaitTimeout when it does not reboot.
        """
        await self._admitted(Action.REBOOT)
        check_here(self._vm.paths, Action.REBOOT)
        end = time.monotonic() + timeout
        reset = asyncio.ensure_future(
            qmp.eventstream.upcoming(self._vm.paths.events, Reset.NAME)
        )
        way = None
        try:
            while True:
                way = await self._ask_to_reboot(reset.done) or way
                left = end - time.monotonic()
                with contextlib.suppress(TimeoutError):
                    patience = min(_ASK_EVERY, left)
                    await self._vm.unless_ended(_ended(reset), patience)
                if reset.done():
                    reset.result()
                    return way
                if left <= _ASK_EVERY:
                    tail = self._vm.console_tail()
                    stage = "the guest to reboot"
                    raise WaitTimeout(stage, timeout, console_tail=tail)
        finally:
            reset.cancel()
            await asyncio.gather(reset, return_exceptions=True)

    async def _ask_to_reboot(self, has_reset: Callable[[], bool]) -> str | None:
        """Which way it was asked; None when it needs not be any more: what is asked
        after the reset would be for the next boot."""
        agent = power.by_agent
        answers = await agent.agent_answers(self._vm)
        if answers and not has_reset() and await agent.ask_agent(self._vm, "reboot"):
            return "agent"
        if has_reset():
            return None
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        await self._vm.command("send-key", {"keys": keys})
        return "keyboard"

    async def stop(self, *, timeout: float = STOP_TIMEOUT) -> StopReport | None:
        """Ends the VM: agent, power button, then `quit`, TERM, KILL; where its sockets
        cannot be seen, its guest is asked by ssh.

        ``timeout`` is how many seconds the guest gets to shut down by itself;
        0 skips it. Returns None when the VM was off. Always ends in having
        seen the process go, or raises WaitTimeout.
        """
        return await self._stopping().stop(timeout)

    async def kill(self) -> StopReport | None:
        """Ends the process at once with SIGKILL; None when the VM was off."""
        return await self._stopping().kill()

    def _stopping(self) -> Stopping:
        return power.Stopping(self._vm, self._awake, self._ask_by_ssh)

    async def _awake(self, state: State) -> bool:
        """Whether the guest can act on a request; a paused one is let run."""
        if state is State.PAUSED:
            with contextlib.suppress(QmpError, StateError, WaitTimeout):
                info = await self._vm.execute(QueryStatus())
                # It has nothing to lose yet, unless a snapshot was loaded.
                if info.status == "prelaunch" and not power.loaded(
                    self._vm.paths.events
                ):
                    return False
                async with power.taken_back(self._vm):
                    await self._vm.execute(Cont())
                return True
        return state is State.RUNNING

    async def _ask_by_ssh(self, timeout: float) -> bool:
        return await power.shut_down(self._vm, timeout)


def _stopped_at(paths: VmPaths) -> float | None:
    """When QEMU stopped the CPUs last, in seconds since the epoch, if it did."""
    past = eventlog.past(paths.events)
    return max((each.at for each in past if each.name == Stopped.NAME), default=None)


async def _ended(task: asyncio.Future[Any]) -> None:
    await asyncio.wait({task})
