"""Ending a VM: which steps are taken, one after the other, and how long each gets.

::

    agent ─► power button ─► quit ─► SIGTERM ─► SIGKILL
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from qemuctl import process
from qemuctl.connection.connection import Connection
from qemuctl.errors import QmpError, StateError, WaitTimeout
from qemuctl.paths import VmPaths
from qemuctl.power.by_agent import agent_answers, ask_agent
from qemuctl.process import held, wait_gone
from qemuctl.qmp.commands import Quit, SystemPowerdown
from qemuctl.registry.records.migration_journal import check_here
from qemuctl.registry.records.outcome import Outcome
from qemuctl.registry.states import Action, State, require
from qemuctl.structs import Struct

# A power button pressed before the guest listens is lost; so it is pressed
# again. Nothing tells that a guest took notice.
_PRESS_EVERY = 3.0
# Seconds for QEMU to press it.
_PRESSED = 1.0
_QUIT_PATIENCE = 5.0
_TERM_PATIENCE = 5.0
_KILL_PATIENCE = 10.0
_LOOK_EVERY = 0.01


class StopReport(Struct, kw_only=False):
    """Which step ended the VM, after how many seconds, and how it looks.

    ``step`` is one of ``agent``, ``acpi``, ``ssh``, ``quit``, ``term``, ``kill``;
    ``unreachable`` that its sockets could not be seen from here.
    """

    step: str
    seconds: float
    outcome: Outcome
    unreachable: bool = False


async def _free(lock: Path) -> None:
    while True:
        if not held(lock):
            return
        await asyncio.sleep(_LOOK_EVERY)  # a lock has no event


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
        for holder in process.holders.holders(paths.lock):
            ended = holder.signal(signal.SIGKILL) or ended
            await wait_gone(holder)
        if time.monotonic() > deadline:
            raise WaitTimeout("the processes to end after SIGKILL", _KILL_PATIENCE)
        await asyncio.sleep(_LOOK_EVERY)  # a lock has no event
    return ended


class Stopping:
    """The way of one VM to its end.

    ``awake`` tells whether its guest can act on a request, ``ask_by_ssh`` asks it to
    shut down within some seconds: what they need is loaded when they are called.
    """

    def __init__(
        self,
        vm: Connection,
        awake: Callable[[State], Awaitable[bool]],
        ask_by_ssh: Callable[[float], Awaitable[bool]],
    ) -> None:
        self._vm = vm
        self._awake = awake
        self._ask_by_ssh = ask_by_ssh
        # Whether its process is of another PID namespace.
        self._elsewhere = False

    async def stop(self, timeout: float) -> StopReport | None:
        """Ends the VM, as `Power.stop` does."""
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
        """Ends the process at once, as `Power.kill` does."""
        if require(Action.KILL, await self._vm.state(), self._vm.name):
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
            vm = self._vm
            if await agent_answers(vm) and await ask_agent(vm, "powerdown"):
                yield _Step("agent", timeout / 2)
            while (left := deadline - time.monotonic()) > 0:
                await self._press()
                yield _Step("acpi", min(_PRESS_EVERY, left))
        if state is State.UNREACHABLE and timeout > 0:
            if await self._ask_by_ssh(timeout):
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

    async def _press(self) -> None:
        with contextlib.suppress(QmpError, StateError, WaitTimeout):
            await self._vm.execute(SystemPowerdown(), timeout=_PRESSED)

    async def _gone(self, patience: float) -> bool:
        try:
            async with asyncio.timeout(patience):
                await wait_gone(self._vm.record.qemu)
                if self._elsewhere:
                    await _free(self._vm.paths.lock)
        except TimeoutError:
            return False
        return True
