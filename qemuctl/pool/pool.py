"""`Pool`: forks of a template, parked until somebody wants them to run.

Whoever takes one while none is parked waits in a queue, and one task decides how
many are started for these and to fill up again::

    take ──► a parked one, or waits ──┐
    keep_full ──► start ──► offer ────┴─► the first who waits, or to be parked
                    ▲                                              │
                    └──────────────── died ◄───── watch ◄──────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qemuctl.boot.throwaway import Attached
from qemuctl.errors import (
    HostError,
    QemuctlError,
    QmpError,
    StateError,
    TemplateError,
    UnexpectedExit,
    UsageError,
)
from qemuctl.pool.pace import Pace
from qemuctl.pool.status import Status
from qemuctl.pool.taking import Taking
from qemuctl.pool.tasks import Tasks
from qemuctl.process import wait_gone
from qemuctl.process.usage import proportional_bytes, usage
from qemuctl.registry.template import Template, read_template
from qemuctl.spec import Spec
from qemuctl.templates.fork import or_ended, park, rouse, warm_up
from qemuctl.units import format_size

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Fork:
    """A parked fork, what it was made from and since when it is; and who watches
    over it while it waits to be taken."""

    attached: Attached
    template: Template
    since: float
    watch: asyncio.Task[None] | None = None


class Pool:
    """Keeps ``size`` forks of a template ready, for the block.

    ::

        async with Pool(template, size=4) as pool:
            async with pool.take() as vm:
                await vm.agent.run(["true"])

    ``spec`` is for all of them, as for `fork`. One that dies is replaced; while the
    host is short of memory none is started to fill up. At the end of the block the
    parked ones end, and those that were taken belong to their takers.

    A parked one has run for a moment and has its identity, so that taking it means
    no more than to let it go on (QMP cont) and to set its clock.
    """

    def __init__(
        self,
        template: Template,
        size: int = 4,
        *,
        spec: Spec | None = None,
        pace: Pace | None = None,
    ) -> None:
        if size < 1:
            raise UsageError(f"a pool keeps one fork at least: {size}")
        self.size = size
        self.template = template
        self._spec = spec
        self._pace = pace or Pace()
        self._parked: list[_Fork] = []
        self._waiting: deque[asyncio.Future[_Fork]] = deque()
        self._starting = self._started = self._handed_out = self._deaths = 0
        self._problem: QemuctlError | None = None
        self._tasks = Tasks()
        self._open = False
        # To `_keep_full`: something is different now.
        self._changed = asyncio.Event()
        # The first one is parked, or cannot be had.
        self._begun = asyncio.Event()

    # -- its life ----------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._open = True
        self._tasks.begin(self._keep_full())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._open = False
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(_ended())
        try:
            await self._tasks.call_off()
        finally:  # also when the end itself is called off
            await self._drain()

    async def _drain(self) -> None:
        """Ends all that are parked."""
        forks, self._parked = self._parked, []
        await asyncio.gather(*(self._discard(fork) for fork in forks))

    async def ready(self) -> None:
        """Waits until the first fork is parked; raises what keeps it from that."""
        await self._begun.wait()
        if not self._parked and self._problem is not None:
            raise self._problem

    def status(self) -> Status:
        """How it is doing. The kernel walks page tables for the memory: some
        milliseconds for each fork."""
        pids = [fork.attached.vm.pid for fork in self._parked]
        return Status(
            template=self.template.name,
            size=self.size,
            parked=len(self._parked),
            starting=self._starting,
            handed_out=self._handed_out,
            started=self._started,
            deaths=self._deaths,
            memory=sum(proportional_bytes(pid) or 0 for pid in pids),
            problem=self._problem.message if self._problem else None,
        )

    # -- taking ------------------------------------------------------------

    def take(self) -> Taking:
        """A fork that runs and is a machine of its own: awaited, an `Attached`,
        which the taker ends; as a block, its `Vm`, which ends with that.

        When none is parked, it is the next one to be started. Raises
        TemplateError when the template cannot be used any more, StateError when
        the pool has ended, and as `fork` does.
        """
        return Taking(self._take)

    async def _take(self) -> Attached:
        await self._follow_template()
        while (fork := self._pop()) is not None:
            # One that dies just now is nothing that its taker should hear of.
            with contextlib.suppress(UnexpectedExit, QmpError):
                return await self._woken(fork)
            self._deaths += 1
        return await self._woken(await self._next())

    async def _woken(self, fork: _Fork) -> Attached:
        waking = rouse(fork.attached, fork.template, self._spec)
        await or_ended(fork.attached, waking)
        self._handed_out += 1
        self._pace.worked()
        return fork.attached

    async def give(self, content: Path) -> Attached | None:
        """A parked fork as it is, its taker's from now on; None when there is none
        that was made from ``content``, the folder of a template's files.

        Raises TemplateError, StateError.
        """
        await self._follow_template()
        fork = self._pop() if self.template.content == content else None
        if fork is None:
            return None
        self._handed_out += 1
        self._pace.worked()
        return fork.attached

    def _pop(self) -> _Fork | None:
        """The one that has been parked for longest and is alive."""
        while self._parked:
            fork = self._parked.pop(0)
            self._changed.set()
            if fork.watch is not None:
                fork.watch.cancel()
            if fork.attached.child.qemu.alive():
                return fork
            self._deaths += 1
            self._tasks.begin(self._discard(fork))
        return None

    async def _next(self) -> _Fork:
        """The next one to be started; raises why it could not be."""
        waiter: asyncio.Future[_Fork] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._changed.set()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                # It came in this very moment, and is nobody's.
                await asyncio.shield(self._discard(waiter.result()))
            raise
        finally:
            self._waiting.remove(waiter)

    async def _follow_template(self) -> None:
        """Takes up a template that was made again. Raises TemplateError for one that
        cannot be used, StateError when the pool has ended."""
        if not self._open:
            raise _ended()
        name = self.template.name
        found = read_template(self.template.folder)
        problem = "it was removed" if found is None else found.problem()
        if found is None or problem is not None:
            raise TemplateError(f"the template {name} cannot be used: {problem}")
        before, self.template = self.template, found
        if found.making != before.making:
            self._changed.set()
            await self._drain()

    # -- filling -----------------------------------------------------------

    async def _keep_full(self) -> None:
        while True:
            self._changed.clear()
            pause = self._begin_some()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def _begin_some(self) -> float | None:
        """Begins as many as may be begun now; seconds until more may be, or None."""
        waiting = sum(not waiter.done() for waiter in self._waiting)
        while self._starting < self._pace.at_once(waiting):
            if self._starting >= waiting:
                # Nobody waits for it: only when the host can afford it.
                if len(self._parked) + self._starting >= self.size + waiting:
                    return None
                pause = self._pace.pause(self._starting)
                if pause:
                    self._told_of_memory()
                    return pause
            self._starting += 1
            self._tasks.begin(self._start())
        return None

    def _told_of_memory(self) -> None:
        if self._pace.short_of_memory(self._starting):
            self._problem = HostError(
                "the host has too little memory for another parked fork: "
                f"{format_size(self._pace.reserve)} are kept free"
            )
            self._begun.set()

    async def _start(self) -> None:
        try:
            await self._follow_template()
            template = self.template
            attached = await park(template, self._spec)
            await or_ended(attached, warm_up(attached, template, self._spec))
            self._started += 1
            self._offer(_Fork(attached, template, time.monotonic()))
        except QemuctlError as error:
            self._failed(error)
        except OSError as error:
            self._failed(HostError(f"no fork can be started: {error}"))
        finally:
            self._starting -= 1
            self._changed.set()

    def _failed(self, error: QemuctlError) -> None:
        _log.warning("no fork of %s: %s", self.template.name, error.message)
        self._problem = error
        self._begun.set()
        self._pace.failed()
        waiter = self._first_waiting()
        if waiter is not None:
            waiter.set_exception(error)

    def _offer(self, fork: _Fork) -> None:
        """For the first who waits, or to be parked."""
        self._problem = None
        waiter = self._first_waiting()
        if waiter is not None:
            waiter.set_result(fork)
        elif self._is_wanted(fork):
            self._park(fork)
        else:  # who waited has gone, or the template was made again meanwhile
            self._tasks.begin(self._discard(fork))

    def _is_wanted(self, fork: _Fork) -> bool:
        current = fork.template.making == self.template.making
        return current and len(self._parked) < self.size

    def _first_waiting(self) -> asyncio.Future[_Fork] | None:
        return next((each for each in self._waiting if not each.done()), None)

    def _park(self, fork: _Fork) -> None:
        self._parked.append(fork)
        fork.watch = self._tasks.begin(self._watch(fork))
        taken = usage(fork.attached.vm.record.qemu)
        self._pace.cost(taken.resident_bytes if taken else 0)
        self._begun.set()

    async def _watch(self, fork: _Fork) -> None:
        """Has a parked fork that dies replaced."""
        vm = fork.attached.vm
        await wait_gone(vm.record.qemu)
        self._parked.remove(fork)
        self._deaths += 1
        self._pace.died(time.monotonic() - fork.since)
        self._changed.set()
        try:
            ended = await vm.wait_exit()
            _log.warning("a parked fork died: %s: %s", vm.name, ended.text)
        finally:
            await fork.attached.end()

    async def _discard(self, fork: _Fork) -> None:
        if fork.watch is not None:
            fork.watch.cancel()
        await fork.attached.end()


def _ended() -> StateError:
    return StateError("take a fork", "off", "the pool has ended")
