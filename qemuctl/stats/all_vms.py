"""Numbers of all VMs that are on, again and again, at a price that fifty of
them can be watched for.

No connection is kept: each VM is asked in a short conversation, and one that
does not answer is waited for in the background, in one place of its queue,
while the others go on. What changes rarely is asked for rarely, and not of
all VMs at the same time.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from qemuctl.connection.monitors import mute
from qemuctl.errors import QmpError, WaitTimeout
from qemuctl.paths import VmPaths
from qemuctl.process import runs
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import State
from qemuctl.registry.vms import names
from qemuctl.stats.collector import FULL, QUICK, Commands, Gauge
from qemuctl.stats.last_samples import keep
from qemuctl.stats.sample import Rates, Sample, rates
from qemuctl.structs import Struct

# Seconds between questions about CPUs, memory and ports; to the agent, on which
# an emulated guest works for a quarter of a second; to the agent as long as
# there is nothing to compare with; and to one that did not answer last time.
FULL_EVERY = 5.0
AGENT_EVERY = 10.0
AGENT_SOON = 3.0
AGENT_AFTER_SILENCE = 30.0
AGENT_PATIENCE = 2.0
# The table waits that long for an answer; whoever takes longer than the
# second number is stuck.
PATIENCE = 0.4
STUCK_AFTER = 1.0
# At most this part of the time goes into proportional memory, of one VM after
# the other.
_WEIGHING = 0.01


class Row(Struct, kw_only=False):
    """A sample of one VM and the rates since the one before it."""

    sample: Sample
    rates: Rates | None


@dataclass
class _Watched:
    """One run of one VM, the questions that are under way, and when the next
    ones are due. ``share`` spreads those of many VMs over the time."""

    gauge: Gauge
    stamp: int
    share: float
    full_at: float | None = None
    agent_at: float = 0.0
    asked_at: float = 0.0
    question: asyncio.Task[None] | None = None
    agent: asyncio.Task[bool] | None = None
    before: Sample | None = None
    rates: Rates | None = None

    @property
    def pending(self) -> bool:
        """Whether QEMU owes an answer."""
        return self.question is not None and not self.question.done()

    @property
    def stuck(self) -> bool:
        return self.pending and time.monotonic() - self.asked_at >= STUCK_AFTER

    async def drop(self) -> None:
        tasks = [task for task in (self.question, self.agent) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.gauge.hang_up()


class Board:
    """All VMs that are on, whenever they are on."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self._weighing: asyncio.Task[None] | None = None
        self._weigh_at = 0.0
        self._weighed: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for one in self._watched.values():
            await one.drop()
            if one.before is not None:
                keep(one.gauge.paths, one.gauge.record.qemu, one.before)
        if self._weighing is not None:
            await asyncio.gather(self._weighing, return_exceptions=True)

    async def look(self) -> list[Row]:
        """A sample of each VM, by name, in half a second; the first look may
        take a whole one.

        A VM that did not answer in time is shown with what is known of it,
        after a second as ``unresponsive``.
        """
        await self._find()
        every = list(self._watched.values())
        patience = STUCK_AFTER if any(x.full_at is None for x in every) else PATIENCE
        questions = [task for x in every if (task := _ask(x)) is not None]
        if questions:
            await asyncio.wait(questions, timeout=patience)
        for one in every:
            if one.stuck:
                one.gauge.silent(mute(one.gauge.paths))
            _ask_agent(one)
        self._weigh()
        return [row for x in every if (row := _row(x)) is not None]

    async def _find(self) -> None:
        """Takes in VMs that are on by now, and lets go of those that are not."""
        here: dict[str, _Watched] = {}
        for name in names():
            paths = VmPaths.of(name)
            try:
                # Replaced at each start, and when its forwards change.
                stamp = os.stat(paths.record).st_mtime_ns  # noqa: PTH116 (faster)
            except OSError:
                continue
            if not runs(paths.lock):
                continue
            known = self._watched.get(name)
            if known is not None and known.stamp == stamp:
                here[name] = self._watched.pop(name)
            elif (record := Record.read(paths.record)) is not None:
                if known is not None and known.gauge.record.qemu == record.qemu:
                    known.stamp = stamp
                    here[name] = self._watched.pop(name)
                    continue
                paths = paths.ran_in(Path(record.run))
                share = len(here) * 7 % 50 / 50
                here[name] = _Watched(Gauge(paths, record), stamp, share)
        for gone in self._watched.values():
            await gone.drop()
        self._watched = here

    def _weigh(self) -> None:
        """Proportional memory of the next VM, when it is time."""
        is_busy = self._weighing is not None and not self._weighing.done()
        if is_busy or time.monotonic() < self._weigh_at or not self._watched:
            return
        left = self._watched.keys() - self._weighed
        if not left:
            self._weighed.clear()
        name = min(left or self._watched)
        self._weighed.add(name)
        self._weighing = asyncio.create_task(self._weigh_one(self._watched[name].gauge))

    async def _weigh_one(self, gauge: Gauge) -> None:
        started = time.monotonic()
        # A large VM takes a second, for which the others need not wait.
        await asyncio.to_thread(gauge.weigh)
        now = time.monotonic()
        self._weigh_at = now + (now - started) / _WEIGHING


def _ask(one: _Watched) -> asyncio.Task[None] | None:
    """The question to wait for now; None when its QEMU is stuck."""
    if one.pending:
        return None if one.stuck else one.question
    if one.question is not None:
        one.question.result()  # what is no business of ours is not hidden
    now = one.asked_at = time.monotonic()
    commands = QUICK
    if one.full_at is None:
        commands, one.full_at = FULL, now + FULL_EVERY * one.share
        one.agent_at = now + AGENT_SOON * one.share
    elif now >= one.full_at:
        commands, one.full_at = FULL, now + FULL_EVERY
    one.question = asyncio.create_task(_answer(one.gauge, commands))
    return one.question


async def _answer(gauge: Gauge, commands: Commands) -> None:
    try:
        await gauge.ask(commands)
    except WaitTimeout:
        gauge.silent(mute(gauge.paths))
    except QmpError:
        gauge.silent(State.STOPPING)


def _ask_agent(one: _Watched) -> None:
    now = time.monotonic()
    if now < one.agent_at or (one.agent is not None and not one.agent.done()):
        return
    if not one.gauge.agent_there:
        return
    every = AGENT_EVERY
    if one.agent is not None and not one.agent.result():
        every = AGENT_AFTER_SILENCE
    elif one.rates is None or not one.rates.nics:
        every = AGENT_SOON
    one.agent_at = now + every
    one.agent = asyncio.create_task(_answer_of_agent(one.gauge))


async def _answer_of_agent(gauge: Gauge) -> bool:
    try:
        return await gauge.ask_agent(AGENT_PATIENCE)
    finally:
        gauge.hang_up()


def _row(one: _Watched) -> Row | None:
    sample = one.gauge.sample()
    if sample is None:
        return None
    before, one.before = one.before, sample
    fresh = rates(before, sample) if before is not None else None
    if fresh is not None and one.rates is not None:
        # Where there was no new reading, the last rates stand.
        fresh = replace(
            fresh,
            disks=fresh.disks or (one.rates.disks if sample.disks else fresh.disks),
            nics=fresh.nics or (one.rates.nics if sample.nics else fresh.nics),
        )
    one.rates = fresh
    return Row(sample, fresh)
