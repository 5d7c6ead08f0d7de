"""The memory of a running VM: how much it has, and another amount."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from qemuctl import durable
from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, HotplugError, StateError
from qemuctl.hotplug import memory as parts
from qemuctl.hotplug.balloon_stats import GuestMemory
from qemuctl.hotplug.guest_ready import (
    again,
    fresh_stats,
    has_driver,
    require_guest,
    settles,
)
from qemuctl.hotplug.memory.choose import Choice, Dimm, MemoryNow, VirtioMem, choose
from qemuctl.hotplug.memory.results import BalloonReport, MemoryChange, changed
from qemuctl.qmp.commands import QueryBalloon
from qemuctl.qmp.memory import Balloon, BalloonChange, QueryMemoryDevices
from qemuctl.qmp.stats import QueryMemorySizeSummary
from qemuctl.units import MIB, format_rounded, format_size

if TYPE_CHECKING:  # loaded when it is used
    from collections.abc import Callable

    from qemuctl.hotplug.bus import Bus
    from qemuctl.hotplug.memory.devices import MemoryDevices

# Seconds that a guest gets in all, and without any progress.
PATIENCE = 60.0
_STALL = 4.0


class Memory:
    """``vm.memory``: how much memory the guest has."""

    def __init__(self, vm: Connection, bus: Callable[[], Bus]) -> None:
        self._vm = vm
        self._bus = bus

    @cached_property
    def _devices(self) -> MemoryDevices:
        return parts.MemoryDevices(self._vm, self._bus(), self.now)

    async def now(self) -> MemoryNow:
        """What it has now (query-memory-size-summary, query-memory-devices,
        query-balloon), and may have by its spec. Raises as `Connection.execute`
        does."""
        now = await self._now()
        most = parts.started_spec(self._vm.paths).memory.max or 0
        return replace(now, max_bytes=max(now.start_bytes, most))

    async def _now(self) -> MemoryNow:
        """As `now`, but as if there could not be more than at the start."""
        vm = self._vm
        summary, there, balloon = await asyncio.gather(
            vm.execute(QueryMemorySizeSummary()),
            vm.execute(QueryMemoryDevices()),
            vm.execute_each([QueryBalloon()]),
        )
        start = summary.base_memory
        devices = [(device.type, device.data or {}) for device in there]
        dimms = tuple(
            Dimm(id=str(data.get("id")), size_bytes=int(data["size"]))
            for type_, data in devices
            if type_ == "dimm"
        )
        plugged = [
            VirtioMem(
                id=str(data.get("id")),
                size_bytes=int(data["size"]),
                requested_bytes=int(data["requested-size"]),
                max_bytes=int(data["max-size"]),
                block_bytes=int(data["block-size"]),
            )
            for type_, data in devices
            if type_ == "virtio-mem"
        ]
        now = MemoryNow(
            start_bytes=start,
            max_bytes=start,
            dimms=dimms,
            virtio_mem=plugged[0] if plugged else None,
        )
        if isinstance(balloon[0], CommandError):  # there is none
            return now
        actual, asked = balloon[0].actual, self._asked(now.fixed_bytes)
        return replace(now, balloon_bytes=actual, balloon_requested_bytes=asked)

    async def balloon(
        self,
        size_bytes: int | None = None,
        *,
        timeout: float = PATIENCE,
        wait: bool = True,
    ) -> BalloonReport:
        """What the balloon leaves its guest; with a size, that from now on.

        ``size_bytes`` is of the memory at start and DIMMs together. Waits until the
        guest has it, or comes no nearer (balloon, BALLOON_CHANGE); not to ``wait``
        gives what was asked for, with no word of the guest's. Raises StateError
        when there is no balloon, no driver for it, or the guest uses more than
        that; HotplugError, ``pending``, when it has not given all of it.
        """
        if size_bytes is None:
            return await self._report()
        async with self._bus().changing():
            now = await self.now()
            if size_bytes < MIB or size_bytes > now.fixed_bytes:
                raise StateError(
                    f"balloon {self._vm.name} to {format_size(size_bytes)}", "running",
                    f"it takes 1M to {format_size(now.fixed_bytes)}",
                    hint=f"more: qemuctl set {self._vm.name} --memory SIZE",
                )  # fmt: skip
            await self._check_driver(now, size_bytes)
            await self._check_use(now.fixed_bytes - size_bytes, now)
            if not wait:
                await self._ask_for(size_bytes, now)
                return await self._report(ask_guest=False)
            await self._inflate(size_bytes, timeout)
        return await self._report()

    async def guest(self) -> GuestMemory | None:
        """What the guest's balloon driver says of its memory, now (guest-stats).

        None without a driver. QEMU asks it every few seconds from then on.
        """
        return await fresh_stats(self._vm)

    async def check(self, size_bytes: int) -> None:
        """Raises what `resize` would, as far as that can be told before."""
        now = await self.now()
        choose(now, size_bytes, virtio_mem=not now.dimms)
        await require_guest(self._vm, f"change the memory of {self._vm.name}")

    async def resize(
        self, size_bytes: int, *, timeout: float = PATIENCE
    ) -> MemoryChange:
        """Gives the guest ``size_bytes`` of memory in all, and waits until it has.

        Below the size at start by the balloon, above it by virtio-mem where the
        guest has a driver for it, else by DIMMs. Raises SpecError for what
        `memory.max` at start leaves no room for, StateError when the guest cannot
        hear of it, HotplugError when it refuses or goes on trying.
        """
        vm = self._vm
        async with self._bus().changing():
            now = await self.now()
            choice = choose(now, size_bytes, virtio_mem=not now.dimms)
            if now.actual_bytes == size_bytes == now.requested_bytes:
                return changed(now, now, choice)
            await require_guest(vm, f"change the memory of {vm.name}")
            await self._check_use(now.actual_bytes - size_bytes, now)
            devices = self._devices
            async with devices.as_before(now):
                if choice.virtio_mem_bytes and (why := await devices.offer(choice)):
                    choice = choose(now, size_bytes, virtio_mem=False, why_not=why)
                await self._check_balloon(now, choice)
                await devices.apply(choice, timeout, now)
            after = await self.now()
            choice = await self._made_up(choice, after)
            if after.balloon_requested_bytes not in (None, choice.balloon_bytes):
                await self._inflate(choice.balloon_bytes, timeout)
            return changed(now, await self.now(), choice)

    async def _made_up(self, choice: Choice, after: MemoryNow) -> Choice:
        """The choice, with the balloon in the place of what the guest keeps of
        virtio-mem: Linux never parts with the last of it.

        Raises HotplugError, ``pending``, where the balloon cannot.
        """
        kept = after.virtio_mem.size_bytes if after.virtio_mem else 0
        over = kept - choice.virtio_mem_bytes
        if over <= 0:
            return choice
        guest = await self.guest() if after.balloon_bytes is not None else None
        if guest is None or over > (guest.available_bytes or over):
            raise HotplugError(
                f"the guest of {self._vm.name} is still to give back "
                f"{format_size(over)} of virtio-mem: it uses it, and tries again",
                "pending",
                hint=f"how far it is: qemuctl info {self._vm.name}; "
                "then the same command again",
            )
        await self._devices.keep(kept)  # or there would be less, later on
        return replace(
            choice,
            why=f"{choice.why}; its guest keeps {format_size(kept)} of virtio-mem",
            balloon_bytes=choice.balloon_bytes - over,
        )

    # -- the balloon -------------------------------------------------------

    async def _report(self, *, ask_guest: bool = True) -> BalloonReport:
        now = await self._now()
        await self._check_device(now)
        assert now.balloon_bytes is not None
        assert now.balloon_requested_bytes is not None
        driver = await has_driver(self._vm)
        return BalloonReport(
            requested_bytes=now.balloon_requested_bytes,
            actual_bytes=now.balloon_bytes,
            total_bytes=now.fixed_bytes,
            has_driver=driver,
            guest=await self.guest() if driver and ask_guest else None,
        )

    def _asked(self, fixed_bytes: int) -> int:
        """What the balloon was last asked to leave of ``fixed_bytes``; a DIMM that
        came since has made it more."""
        try:
            held = int(self._vm.paths.ballooned.read_text())
        except (OSError, ValueError):
            held = 0
        return max(0, fixed_bytes - held)

    async def _check_balloon(self, now: MemoryNow, choice: Choice) -> None:
        out = sum(d.size_bytes for d in now.dimms if d.id in choice.out)
        left = now.fixed_bytes + choice.new_dimm_bytes - out
        if choice.balloon_bytes < left:
            await self._check_driver(now, choice.balloon_bytes)

    async def _check_device(self, now: MemoryNow) -> None:
        if now.balloon_bytes is None:
            raise StateError(
                f"balloon {self._vm.name}", "running", "it has no balloon device",
                hint="balloon: true in its spec gives it one, from its next start",
            )  # fmt: skip

    async def _check_driver(self, now: MemoryNow, size_bytes: int) -> None:
        await self._check_device(now)
        if not await has_driver(self._vm):
            raise StateError(
                f"take {self._vm.name} down to {format_size(size_bytes)}", "running",
                "its guest has no balloon driver up",
                hint=f"if it still boots: qemuctl wait {self._vm.name}; "
                "Linux needs its module virtio_balloon",
            )  # fmt: skip

    async def _check_use(self, less_bytes: int, now: MemoryNow) -> None:
        """A guest that gives away what it uses kills its own programs, and panics."""
        if less_bytes <= 0:
            return
        guest = await self.guest()
        free = guest.available_bytes if guest else None
        if free is not None and less_bytes > free:
            least = now.actual_bytes - free
            raise StateError(
                f"take {format_size(less_bytes)} from {self._vm.name}", "running",
                f"its guest has only {format_rounded(free)} to spare",
                hint=f"a little more than {format_rounded(least)} would do",
            )  # fmt: skip

    async def _ask_for(self, size_bytes: int, now: MemoryNow) -> None:
        held = f"{now.fixed_bytes - size_bytes}\n"
        durable.write(self._vm.paths.ballooned, held, durable=False)
        await again(self._vm, Balloon(value=size_bytes))

    async def _inflate(self, size_bytes: int, timeout: float) -> None:
        vm, now = self._vm, await self._now()
        before = now.balloon_bytes
        await self._ask_for(size_bytes, now)

        async def read() -> int:
            return (await vm.execute(QueryBalloon())).actual

        actual = await settles(
            vm, BalloonChange, read, size_bytes, timeout=timeout, stall=_STALL
        )
        if actual != size_bytes:
            raise HotplugError(
                f"the balloon of {vm.name} is on its way: {format_size(size_bytes)} "
                f"requested, {format_rounded(actual)} so far",
                "pending",
                hint=f"back: qemuctl balloon {vm.name} {format_size(before or 0)}",
            )
