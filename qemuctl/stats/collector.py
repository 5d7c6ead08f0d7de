"""What is read of one VM, and kept until it is read again.

Three sources, each with a pace of its own: proc(5) costs microseconds and is
asked for every sample; QEMU is asked in one short conversation (`glance`),
of which the larger part need not be had every second; the guest's agent,
which alone knows network counters, answers in its own time or never.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

from qemuctl.errors import AgentError, CommandError, WaitTimeout
from qemuctl.guest.agent import Agent
from qemuctl.hotplug import balloon_stats
from qemuctl.paths import VmPaths
from qemuctl.process.usage import clock, proportional_bytes, thread_seconds, usage
from qemuctl.qmp.commands import (
    Command,
    QueryBalloon,
    QueryChardev,
    QueryCpusFast,
    QueryStatus,
    R,
)
from qemuctl.qmp.glance import glance
from qemuctl.qmp.stats import BlockStats, QueryBlockstats, QueryMemorySizeSummary
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import State, from_run_state
from qemuctl.stats.nic_counters import of_guest, of_tap, taps
from qemuctl.stats.sample import DiskCounters, MemoryUse, NicCounters, Sample, VcpuTime

Commands = tuple[Command[Any], ...]

QUICK: Commands = (QueryStatus(), QueryBlockstats())
FULL: Commands = (
    *QUICK,
    QueryCpusFast(),
    QueryMemorySizeSummary(),
    QueryBalloon(),
    QueryChardev(),
    balloon_stats.INTERVAL,
    balloon_stats.STATS,
)
AGENT_PORT = "agent"
# Seconds after which the other monitor is tried too: this one may be in use.
_OTHER_AFTER = 0.4


class Gauge:
    """The readings of one run of one VM."""

    def __init__(
        self, paths: VmPaths, record: Record, agent: Agent | None = None
    ) -> None:
        self.paths = paths
        self.record = record
        self.state = State.STARTING
        self._agent = agent or Agent(paths.agent_socket)
        self._replies: dict[Command[Any], Any] = {}
        self._disks: tuple[DiskCounters, ...] | None = None
        self._taps = taps(record.argv)
        self._nics: list[NicCounters] | None = None
        self._proportional: int | None = None

    # -- QEMU --------------------------------------------------------------

    async def ask(self, commands: Commands) -> None:
        """Asks QEMU; ends when it has answered, and never when it is stuck.

        Raises QmpError when the monitor is gone, WaitTimeout when too many
        wait for it.
        """
        self.take(commands, await self._converse(commands))
        if self.wants_polling:
            await self._converse((balloon_stats.POLL,))

    async def _converse(self, commands: Commands) -> list[Any]:
        # The owner's monitor is free when there is no owner.
        monitors = [self.paths.tools_socket]
        if not self.record.attached:
            monitors.insert(0, self.paths.owner_socket)
        try:
            async with asyncio.timeout(_OTHER_AFTER):
                return await glance(monitors[0], commands)
        except TimeoutError:
            pass
        waiting = [asyncio.create_task(glance(path, commands)) for path in monitors]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in waiting if task.done()).result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def take(self, commands: Commands, replies: Sequence[Any]) -> None:
        """Keeps typed replies; a CommandError stands for what is not there."""
        for command, reply in zip(commands, replies, strict=True):
            known = None if isinstance(reply, CommandError) else reply
            self._replies[command] = known
            if isinstance(command, QueryBlockstats) and known is not None:
                now = clock()
                self._disks = tuple(_counters(x, now) for x in known if _id(x))
        status = self._reply(QueryStatus())
        if status is not None:
            self.state = from_run_state(status.status)

    def _reply(self, command: Command[R]) -> R | None:
        """What QEMU last said to a command."""
        return cast(R | None, self._replies.get(command))

    @property
    def wants_polling(self) -> bool:
        """Whether nobody has told QEMU yet to ask the balloon's driver."""
        # None is a VM without a balloon.
        if self._reply(balloon_stats.INTERVAL) != 0:
            return False
        self._replies[balloon_stats.INTERVAL] = balloon_stats.POLL_EVERY
        return True

    def silent(self, state: State) -> None:
        """QEMU does not answer: what it counts is not known any more."""
        self.state = state
        self._disks = self._nics = None

    # -- the guest, the host -----------------------------------------------

    @property
    def agent_there(self) -> bool:
        """Whether the guest runs and has its end of the agent's port open."""
        ports = self._reply(QueryChardev()) or []
        is_open = any(x.label == AGENT_PORT and x.frontend_open for x in ports)
        if self.state is State.RUNNING and is_open:
            return True
        self._nics = None
        return False

    async def ask_agent(self, timeout: float) -> bool:
        """Asks a guest that runs for its network counters; tells whether it
        answered. Never raises."""
        if not self.agent_there:
            return False
        try:
            reply = await self._agent.request(
                "guest-network-get-interfaces", timeout=timeout
            )
            self._nics = of_guest(reply, clock(), self._taps)
        except (AgentError, WaitTimeout):
            self._nics = None
            return False
        return True

    def hang_up(self) -> None:
        """Lets the next one talk to the agent."""
        self._agent.let_go()

    def weigh(self) -> None:
        """Reads the proportional memory, which takes a while for a large VM."""
        self._proportional = proportional_bytes(self.record.qemu.pid)

    def sample(self) -> Sample | None:
        """All that is known, CPU time and resident memory read now; None when
        the process has ended."""
        process = self.record.qemu
        used = usage(process)
        if used is None:
            return None
        now = clock()
        times = [
            (cpu.cpu_index, thread_seconds(process.pid, cpu.thread_id))
            for cpu in self._reply(QueryCpusFast()) or []
        ]
        return Sample(
            name=self.paths.name,
            state=self.state,
            pid=process.pid,
            at=time.time(),
            clock=now,
            cpu_seconds=used.cpu_seconds,
            vcpus=tuple(
                VcpuTime(index=index, cpu_seconds=seconds)
                for index, seconds in sorted(times)
                if seconds is not None
            ),
            memory=self._memory(used.resident_bytes),
            disks=self._disks,
            nics=self._all_nics(now),
        )

    def _memory(self, resident: int) -> MemoryUse:
        size = self._reply(QueryMemorySizeSummary())
        balloon = self._reply(QueryBalloon())
        configured = self.record.memory
        if size is not None:
            configured = size.base_memory + (size.plugged_memory or 0)
        return MemoryUse(
            configured_bytes=configured,
            actual_bytes=configured if balloon is None else balloon.actual,
            resident_bytes=resident,
            proportional_bytes=self._proportional,
            guest=balloon_stats.parsed(self._reply(balloon_stats.STATS)),
        )

    def _all_nics(self, now: float) -> tuple[NicCounters, ...] | None:
        found = [of_tap(tap, now) for tap in self._taps]
        counted = [nic for nic in found if nic is not None]
        if self._nics is None and not counted:
            return None
        return (*counted, *(self._nics or ()))


def _id(stats: BlockStats) -> str:
    """The device's id: QEMU gives it alone, or in a path of objects."""
    path = stats.qdev or stats.node_name or ""
    return path.removesuffix("/virtio-backend").rpartition("/")[2]


def _counters(stats: BlockStats, now: float) -> DiskCounters:
    counted = stats.stats
    return DiskCounters(
        id=_id(stats),
        clock=now,
        read_bytes=counted.rd_bytes,
        written_bytes=counted.wr_bytes,
        read_operations=counted.rd_operations,
        write_operations=counted.wr_operations,
        flush_operations=counted.flush_operations,
    )
