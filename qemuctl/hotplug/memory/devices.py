"""Memory that is plugged into a running VM, and out of it: virtio-mem and DIMMs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

from qemuctl.cmdline.devices import PcDimm, VirtioMemPci
from qemuctl.cmdline.memory_blocks import virtio_mem_room
from qemuctl.cmdline.objects import MemoryBackendRam
from qemuctl.cmdline.qapi import to_qapi
from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, HotplugError, QemuctlError, StateError
from qemuctl.hotplug.bus import PERIPHERAL, Bus
from qemuctl.hotplug.guest_ready import (
    BRIEF,
    accepted,
    again,
    ask_agent,
    carried_out,
    device_add,
    fresh_stats,
    gone_if_cut_off,
    let_go,
    settles,
    take_back,
)
from qemuctl.hotplug.memory.choose import Choice, Dimm, MemoryNow
from qemuctl.hotplug.unplug import Removal
from qemuctl.qmp import eventlog
from qemuctl.qmp.commands import QomSet
from qemuctl.qmp.memory import MemoryDeviceSizeChange
from qemuctl.registry.records.hotplug_journal import Change
from qemuctl.units import format_rounded, format_size

VIRTIO_MEM = "vmem0"
# Seconds in which a guest with a driver takes the first of what it is offered.
_FIRST = 5.0
_STALL = 3.0
# Seconds in which a guest says what it makes of a DIMM, and shows it.
_ANSWER = 10.0


class MemoryDevices:
    """What `Memory` plugs; inside of `Bus.changing` only."""

    def __init__(
        self, vm: Connection, bus: Bus, now: Callable[[], Awaitable[MemoryNow]]
    ) -> None:
        self._vm = vm
        self._bus = bus
        self._now = now

    # -- virtio-mem --------------------------------------------------------

    async def offer(self, choice: Choice) -> str:
        """Sees whether the guest takes virtio-mem; says why it does not, if so.

        Plugs the device in when there is none yet (object-add, device_add), and then
        requests all that the choice has of it: the guest may have taken some of it,
        or all, when this is over.
        """
        now = await self._now()
        if now.virtio_mem is None:
            try:
                await self._plug_virtio_mem(now)
            except StateError:
                return "no port is free for virtio-mem"
            except CommandError as error:
                return f"no virtio-mem here ({error.desc})"
            now = await self._now()
        if now.virtio_mem is None or now.virtio_mem.size_bytes:
            return ""
        size = await self._request(choice.virtio_mem_bytes, 2 * _FIRST, _FIRST)
        if size:
            return ""
        await self._set(0)
        return "its guest takes no virtio-mem"

    async def _plug_virtio_mem(self, now: MemoryNow) -> None:
        place = await self._bus.place()
        room = virtio_mem_room(now.max_bytes - now.start_bytes, now.max_bytes)
        memory = MemoryBackendRam(id=f"{VIRTIO_MEM}-mem", size=room)
        device = VirtioMemPci(
            id=VIRTIO_MEM, bus=place.bus, addr=place.addr, memdev=memory.id,
            requested_size=0,
        )  # fmt: skip
        change = Change(device=VIRTIO_MEM, removal=False, objects=(memory.id,))
        async with self._bus.adding(change):
            await self._vm.command("object-add", to_qapi(memory))
            await device_add(self._bus, to_qapi(device))

    async def _set(self, size_bytes: int) -> None:
        path = f"{PERIPHERAL}/{VIRTIO_MEM}"
        value = QomSet(path=path, property="requested-size", value=size_bytes)
        await again(self._vm, value)

    async def _request(self, size_bytes: int, timeout: float, stall: float) -> int:
        """Asks for a size (qom-set requested-size); gives the one that the guest has
        when it comes no nearer (MEMORY_DEVICE_SIZE_CHANGE)."""
        await self._set(size_bytes)

        async def read() -> int:
            device = (await self._now()).virtio_mem
            return device.size_bytes if device else 0

        return await settles(
            self._vm, MemoryDeviceSizeChange, read, size_bytes,
            timeout=timeout, stall=stall,
        )  # fmt: skip

    async def _resize_virtio_mem(
        self, before: int, size_bytes: int, timeout: float
    ) -> None:
        size = await self._request(size_bytes, timeout, _STALL)
        if size >= size_bytes:
            return  # what it cannot give back is for the balloon
        kept = await self._request(before, _ANSWER, _STALL) - before
        back, outcome = "it was asked back, and has gone", "refused"
        if kept > 0:
            back = f"it was asked back, and {format_rounded(kept)} is still to come"
            outcome = "pending"
        raise HotplugError(
            f"the guest of {self._vm.name} took only {format_rounded(size)} of "
            f"{format_size(size_bytes)} by virtio-mem; {back}",
            outcome,
            hint=f"its own words: qemuctl exec {self._vm.name} -- dmesg",
        )

    @contextlib.asynccontextmanager
    async def as_before(self, before: MemoryNow) -> AsyncIterator[None]:
        """When the block is cut off, or fails before all is asked of the guest,
        virtio-mem is asked back to what it was."""
        try:
            yield
        except HotplugError:
            raise  # it has been asked back where it was refused
        except BaseException:
            await carried_out(self._back(_size(before)))
            raise

    async def _back(self, size_bytes: int) -> None:
        with contextlib.suppress(QemuctlError, OSError):  # there is another error
            async with asyncio.timeout(BRIEF):
                mem = (await self._now()).virtio_mem
                if mem is not None and mem.requested_bytes != size_bytes:
                    await self._set(size_bytes)

    async def keep(self, size_bytes: int) -> None:
        """Ends the wish for less than the guest can give back of virtio-mem."""
        await self._set(size_bytes)

    # -- both --------------------------------------------------------------

    async def apply(self, choice: Choice, timeout: float, before: MemoryNow) -> None:
        """Makes virtio-mem and the DIMMs what ``choice`` says.

        The guest may keep some of virtio-mem. Raises HotplugError: what was refused
        is then asked back to what there was ``before`` anything was offered.
        """
        now = await self._now()
        mem = now.virtio_mem
        if mem is not None and mem.size_bytes != choice.virtio_mem_bytes:
            await self._resize_virtio_mem(
                _size(before), choice.virtio_mem_bytes, timeout
            )
        elif mem is not None and mem.requested_bytes != choice.virtio_mem_bytes:
            await self._set(choice.virtio_mem_bytes)
        if mem is not None and choice.virtio_mem_bytes:
            await self._online_blocks()
        for dimm in now.dimms:
            if dimm.id in choice.out:
                await self._unplug_dimm(dimm, timeout)
        if choice.new_dimm_bytes:
            await self._plug_dimm(now, choice.new_dimm_bytes)

    # -- DIMMs -------------------------------------------------------------

    async def _plug_dimm(self, now: MemoryNow, size_bytes: int) -> None:
        """Plugs a DIMM in and sees that the guest has it (object-add, device_add,
        ACPI_DEVICE_OST)."""
        vm = self._vm
        taken = {dimm.id for dimm in now.dimms}
        id_ = next(f"dimm{n}" for n in range(1000) if f"dimm{n}" not in taken)
        memory = MemoryBackendRam(id=f"{id_}-mem", size=size_bytes)
        before = await self._total()
        seen = eventlog.end(vm.paths.events)
        change = Change(device=id_, removal=False, objects=(memory.id,))
        dimm = Dimm(id=id_, size_bytes=size_bytes)
        async with gone_if_cut_off(self._bus, _removal(dimm)):
            async with self._bus.adding(change):
                await self._add_dimm(dimm, memory)
            answer = await accepted(vm, seen, id_, _ANSWER)
            used = bool(answer) and await self._grown(before, size_bytes)
        if answer is None:
            await self._take_back(dimm, "did not answer to")
        if not answer:
            await self._take_back(dimm, "did not accept")
        if not used:
            await self._take_back(dimm, "does not use")

    async def _add_dimm(self, dimm: Dimm, memory: MemoryBackendRam) -> None:
        vm = self._vm
        await vm.command("object-add", to_qapi(memory))
        try:
            await device_add(self._bus, to_qapi(PcDimm(id=dimm.id, memdev=memory.id)))
        except CommandError as error:
            if "slot" not in error.desc:
                raise
            raise StateError(
                f"plug a DIMM into {vm.name}", "running", error.desc,
                hint="more memory.slots in the spec, from its next start",
            ) from error  # fmt: skip

    async def _take_back(self, dimm: Dimm, said: str) -> NoReturn:
        """Takes memory back that the guest has not taken; and then the error."""
        vm = self._vm
        outcome, there = await take_back(self._bus, _removal(dimm), timeout=_ANSWER)
        raise HotplugError(
            f"the guest of {vm.name} {said} a DIMM of "
            f"{format_size(dimm.size_bytes)}{there}",
            outcome,
            hint=f"its own words: qemuctl exec {vm.name} -- dmesg",
        )

    async def _grown(self, before: int | None, size_bytes: int) -> bool:
        """Whether the guest's own total has grown, as far as anybody tells."""
        end = asyncio.get_running_loop().time() + _ANSWER
        while before is not None:
            await self._online_blocks()
            total = await self._total()
            # Linux keeps some of it for its own lists of pages.
            if total is None or total >= before + size_bytes // 2:
                return True
            if asyncio.get_running_loop().time() > end:
                return False
            # No event tells that a guest has taken memory into use.
            await asyncio.sleep(0.2)
        return True

    async def _total(self) -> int | None:
        """All memory that the guest counts; None where nobody tells."""
        stats = await fresh_stats(self._vm)
        return stats.total_bytes if stats else None

    async def _unplug_dimm(self, dimm: Dimm, timeout: float) -> None:
        vm = self._vm
        removal = await let_go(self._bus, _removal(dimm), timeout=timeout)
        if removal is Removal.REMOVED:
            return
        size = format_size(dimm.size_bytes)
        if removal is Removal.REFUSED:
            raise HotplugError(
                f"the guest of {vm.name} uses {dimm.id} ({size}) and did not let go "
                "of it",
                "refused",
                hint=f"take other memory instead: qemuctl balloon {vm.name} SIZE",
            )
        if not await self._bus.there(dimm.id):
            raise HotplugError(
                f"{dimm.id} ({size}) of {vm.name} has gone, but QEMU has not freed "
                "its memory yet",
                "pending",
                hint="the next command that changes it does the rest",
            )
        raise HotplugError(
            f"the guest of {vm.name} has not answered yet whether it lets go of "
            f"{dimm.id} ({size})",
            "pending",
            hint=f"how far it is: qemuctl info {vm.name}",
        )

    async def _online_blocks(self) -> None:
        """Brings memory into use that the guest has left lying
        (guest-get-memory-blocks, guest-set-memory-blocks)."""
        blocks: Any = await ask_agent(self._vm, "guest-get-memory-blocks")
        if not isinstance(blocks, list):
            return
        idle = [
            {"phys-index": block.get("phys-index"), "online": True}
            for block in blocks
            if isinstance(block, dict) and block.get("online") is False
        ]
        if idle:
            await ask_agent(self._vm, "guest-set-memory-blocks", {"mem-blks": idle})


def _size(now: MemoryNow) -> int:
    return now.virtio_mem.size_bytes if now.virtio_mem else 0


def _removal(dimm: Dimm) -> Change:
    return Change(device=dimm.id, removal=True, objects=(f"{dimm.id}-mem",))
