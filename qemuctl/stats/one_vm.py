"""Numbers of one VM: CPU time, memory, disks, network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from qemuctl.connection.connection import Connection
from qemuctl.connection.monitors import mute
from qemuctl.errors import CommandError, QmpError, StateError, WaitTimeout
from qemuctl.hotplug.balloon_stats import POLL
from qemuctl.registry.states import State
from qemuctl.stats.collector import FULL, Gauge
from qemuctl.stats.last_samples import keep, rates_since
from qemuctl.stats.sample import Rates, Sample, rates

# Seconds that QEMU, and then the agent, get for their answer.
QEMU_PATIENCE = 1.0
AGENT_PATIENCE = 1.0


class Stats:
    """``vm.stats``: what the VM takes and does, in numbers."""

    def __init__(self, vm: Connection) -> None:
        self._vm = vm
        self._gauge = Gauge(vm.paths, vm.record, vm.agent)

    async def sample(self, *, agent_timeout: float = AGENT_PATIENCE) -> Sample:
        """All numbers, read now, in about two seconds at most.

        From QEMU (query-status, query-cpus-fast, query-blockstats,
        query-balloon, query-memory-size-summary, the balloon's guest-stats),
        proc(5), and the agent (guest-network-get-interfaces; 0 as its
        ``agent_timeout`` leaves it out). What somebody does not tell is None;
        a QEMU that does not answer makes the state ``unresponsive``. Raises
        StateError when the process has ended.
        """
        gauge = self._gauge
        try:
            async with asyncio.timeout(QEMU_PATIENCE):
                await self._ask()
        except (TimeoutError, WaitTimeout):
            gauge.silent(mute(gauge.paths))
        except (QmpError, StateError):
            gauge.silent(State.STOPPING)
        if agent_timeout > 0:
            await gauge.ask_agent(agent_timeout)
            gauge.hang_up()
        # Not in the loop: other tasks go on while the kernel counts pages.
        await asyncio.to_thread(gauge.weigh)
        sample = gauge.sample()
        if sample is None:
            raise StateError(
                f"sample {self._vm.name}", State.OFF, "the VM has ended",
                hint=f"qemuctl info {self._vm.name} tells how",
            )  # fmt: skip
        return sample

    async def _ask(self) -> None:
        """On the monitor that is open already, for it may be the only one."""
        if not self._vm.connected:
            await self._gauge.ask(FULL)
            return
        replies: list[Any] = []
        for command in FULL:
            try:
                replies.append(await self._vm.execute(command))
            except CommandError as error:
                replies.append(error)
        self._gauge.take(FULL, replies)
        if self._gauge.wants_polling:
            await self._vm.execute(POLL)

    async def watch(
        self, interval: float = 1.0
    ) -> AsyncGenerator[tuple[Sample, Rates | None], None]:
        """A sample every ``interval`` seconds, with the rates since the one before it.

        Those of the first, which comes at once, are since the last sample that anybody
        took, or since the start (see `rates_since`). Raises as `sample` does.
        """
        before: Sample | None = None
        due = time.monotonic()
        while True:
            sample = await self.sample()
            past = self._vm.paths, self._vm.record.qemu, sample
            found = rates(before, sample) if before is not None else rates_since(*past)
            keep(*past)
            yield sample, found
            before = sample
            due = max(due + interval, time.monotonic())
            # Counters grow without an event.
            await asyncio.sleep(due - time.monotonic())
