"""Pause, resume, reset, reboot, stop and kill."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuctl import qmp
from qemuctl import vm as facets
from qemuctl.errors import AgentError, AgentRefused, QmpError, StateError, WaitTimeout
from qemuctl.paths import VmPaths
from qemuctl.process import held, wait_gone
from qemuctl.process.holders import holders
from qemuctl.qmp import eventlog
from qemuctl.qmp.commands import (
    Cont,
    QueryStatus,
    Quit,
    Stop,
    SystemPowerdown,
    SystemReset,
)
from qemuctl.qmp.events import Reset, Resumed, Stopped
from qemuctl.structs import Struct
from qemuctl.vm.agent_port import agent_port_open
from qemuctl.vm.disk_errors import last_disk_error
from qemuctl.vm.leaving import check_here
from qemuctl.vm.outcome import Outcome
from qemuctl.vm.states import Action, State, require

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

STOP_TIMEOUT = 60.0
REBOOT_TIMEOUT = 60.0
_AGENT_PATIENCE = 1.0
# A power button pressed before the guest listens is lost; so it is pressed
# again. Nothing tells that a guest took notice.
_PRESS_EVERY = 3.0
# Seconds for a guest that was asked to reboot, and does.
_ASK_EVERY = 15.0
_QUIT_PATIENCE = 5.0
_TERM_PATIENCE = 5.0
_KILL_PATIENCE = 10.0
_LOOK_EVERY = 0.01
# Seconds in which a disk that still fails does so after `cont`.
_FAILS_AGAIN = 0.5
# Seconds that a guest's clock may be behind after a pause.
_BEHIND_MOST = 1.0


class StopReport(Struct, kw_only=False):
    """Which step ended the VM, after how many seconds, and how it looks.

    ``step`` is one of ``agent``, ``acpi``, ``ssh``, ``quit``, ``term``, ``kill``;
    ``unreachable`` that its sockets could not be seen from here.
    """

    step: str
    seconds: float
    outcome: Outcome
    unreachable: bool = False


class Power:
    """The power facet of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        # Whether its process is of another PID namespace.
        self._elsewhere = False

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
            with self._vm.deadline("QEMU to stop the CPUs", _QUIT_PATIENCE):
                await self._vm.unless_ended(events.get(), _QUIT_PATIENCE)
        return True

    async def resume(self) -> bool:
        """Lets the virtual CPUs run (QMP cont); False when they did.

        After a stop of more than a second, whatever its reason, the guest's agent
        sets its clock: `Vm.close` waits for that, and `Vm.clock` tells. Raises
        StateError while the VM is being saved, and when QEMU does not go on, as after
        a disk error whose cause is still there.
        """
        if not await self._admitted(Action.RESUME):
            return False
        check_here(self._vm.paths, Action.RESUME)
        stopped = _stopped_at(self._vm.paths)
        async with facets.taken_back(self._vm):
            done = await self._resume()
        behind = time.time() - stopped if stopped is not None else 0
        if behind > _BEHIND_MOST and agent_port_open(self._vm.paths):
            self._vm.clock = asyncio.create_task(facets.set_clock(self._vm))
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
                await self._vm.unless_ended(events.get(), _AGENT_PATIENCE)
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
            with self._vm.deadline("QEMU to reset", _QUIT_PATIENCE):
                await self._vm.unless_ended(events.get(), _QUIT_PATIENCE)

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
        answers = await self._agent_answers()
        if answers and not has_reset() and await self._ask_agent("reboot"):
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
        started = time.monotonic()
        state = await self._vm.state()
        if require(Action.STOP, state, self._vm.name):
            return None
        check_here(self._vm.paths, Action.STOP)
        self._elsewhere = state is State.RUNNING and not self._vm.record.qemu.alive()
        async for step in self._ladder(state, timeout):
            if await self._gone(step.patience):
                ended = await self._vm.wait_exit()
                spent, unseen = time.monotonic() - started, state is State.UNREACHABLE
                return StopReport(step.name, spent, ended, unseen)
        raise WaitTimeout("the process to end after SIGKILL", _KILL_PATIENCE)

    async def kill(self) -> StopReport | None:
        """Ends the process at once with SIGKILL; None when the VM was off."""
        if not await self._admitted(Action.KILL):
            return None
        started = time.monotonic()
        self._vm.record.qemu.signal(signal.SIGKILL)
        if not await self._gone(_KILL_PATIENCE):
            raise WaitTimeout("the process to end after SIGKILL", _KILL_PATIENCE)
        ended = await self._vm.wait_exit()
        return StopReport("kill", time.monotonic() - started, ended)

    async def _ladder(self, state: State, timeout: float) -> AsyncIterator[_Step]:
        """Each step, taken when the one before did not help."""
        if timeout > 0 and await self._awake(state):
            deadline = time.monotonic() + timeout
            if await self._agent_answers() and await self._ask_agent("powerdown"):
                yield _Step("agent", timeout / 2)
            while (left := deadline - time.monotonic()) > 0:
                await self._press()
                yield _Step("acpi", min(_PRESS_EVERY, left))
        if state is State.UNREACHABLE and timeout > 0:
            if await facets.shut_down(self._vm, timeout):
                yield _Step("ssh", timeout)
        elif state is not State.UNRESPONSIVE:
            with contextlib.suppress(QmpError, StateError, WaitTimeout):
                await self._vm.execute(Quit(), timeout=_QUIT_PATIENCE)
            yield _Step("quit", _QUIT_PATIENCE)
        self._vm.record.qemu.signal(signal.SIGTERM)
        # A stopped process hears of TERM only when it goes on.
        yield _Step("term", _TERM_PATIENCE if state is not State.UNRESPONSIVE else 1.0)
        self._vm.record.qemu.signal(signal.SIGKILL)
        yield _Step("kill", _KILL_PATIENCE)

    async def _awake(self, state: State) -> bool:
        """Whether the guest can act on a request; a paused one is let run."""
        if state is State.PAUSED:
            with contextlib.suppress(QmpError, StateError, WaitTimeout):
                info = await self._vm.execute(QueryStatus())
                # It has nothing to lose yet, unless a snapshot was loaded.
                if info.status == "prelaunch" and not facets.loaded(
                    self._vm.paths.events
                ):
                    return False
                async with facets.taken_back(self._vm):
                    await self._vm.execute(Cont())
                return True
        return state is State.RUNNING

    async def _agent_answers(self) -> bool:
        try:
            await self._vm.agent.ping(timeout=_AGENT_PATIENCE)
        except (AgentError, WaitTimeout):
            return False
        return True

    async def _ask_agent(self, mode: str) -> bool:
        """Asks the agent to shut down; whether it did not refuse."""
        # No reply means that it works (guest-shutdown's own documentation);
        # the channel may close before, when the guest is quick.
        with contextlib.suppress(WaitTimeout):
            try:
                await self._vm.agent.request(
                    "guest-shutdown", {"mode": mode}, timeout=0.5
                )
            except AgentRefused:
                return False
            except AgentError:
                pass
        return True

    async def _press(self) -> None:
        with contextlib.suppress(QmpError, StateError, WaitTimeout):
            await self._vm.execute(SystemPowerdown(), timeout=_AGENT_PATIENCE)

    async def _gone(self, patience: float) -> bool:
        try:
            async with asyncio.timeout(patience):
                await wait_gone(self._vm.record.qemu)
                if self._elsewhere:
                    await _free(self._vm.paths.lock)
        except TimeoutError:
            return False
        return True


async def _free(lock: Path) -> None:
    while True:
        if not held(lock):
            return
        await asyncio.sleep(_LOOK_EVERY)  # a lock has no event


def _stopped_at(paths: VmPaths) -> float | None:
    """When QEMU stopped the CPUs last, in seconds since the epoch, if it did."""
    past = eventlog.past(paths.events)
    return max((each.at for each in past if each.name == Stopped.NAME), default=None)


async def _ended(task: asyncio.Future[Any]) -> None:
    await asyncio.wait({task})


class _Step(Struct, kw_only=False):
    name: str
    patience: float


async def kill_unknown(paths: VmPaths) -> bool:
    """Ends a VM whose process is not known, by who holds its lock.

    False when nobody does. Raises WaitTimeout when that does not end them.
    """
    ended = False
    deadline = time.monotonic() + _KILL_PATIENCE
    while held(paths.lock):
        # One after the other may start more: the shepherd cleans up.
        for process in holders(paths.lock):
            ended = process.signal(signal.SIGKILL) or ended
            await wait_gone(process)
        if time.monotonic() > deadline:
            raise WaitTimeout("the processes to end after SIGKILL", _KILL_PATIENCE)
        await asyncio.sleep(_LOOK_EVERY)  # a lock has no event
    return ended
