"""The processors of a running VM: how many it has, and another number."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, HotplugError, SpecError, StateError
from qemuctl.hotplug.bus import PERIPHERAL, Bus
from qemuctl.hotplug.guest_ready import (
    BRIEF,
    accepted,
    ask_agent,
    carried_out,
    device_add,
    give_up,
    gone_if_cut_off,
    let_go,
    require_guest,
    take_back,
)
from qemuctl.hotplug.possible_cpus import possible_cpus
from qemuctl.hotplug.unplug import Removal
from qemuctl.qmp import eventlog
from qemuctl.qmp.commands import QueryCpusFast
from qemuctl.qmp.cpus import HotpluggableCpu, QueryHotpluggableCpus
from qemuctl.qmp.plug import DeviceDeleted
from qemuctl.registry.records.hotplug_journal import Change
from qemuctl.structs import Struct

# Seconds that a guest gets to say what it makes of a processor, and to bring it
# online; under emulation on a busy host it takes some.
PATIENCE = 30.0
_LOOK = 0.1
_CPU = re.compile(
    rf"{PERIPHERAL}/cpu[0-9]+(/lapic)?$|/machine/unattached/device\[[0-9]+\]/lapic$"
)


class CpusNow(Struct):
    """The processors of a running VM.

    ``plugged`` is how many it has, ``online`` how many of them its guest uses, None
    where no agent tells; up to ``max`` can be plugged in, and ``removable`` of them
    out, by their ids, the last one first.
    """

    plugged: int
    max: int
    removable: tuple[str, ...]
    online: int | None


class CpusChange(Struct):
    """Another number of processors; ``online`` is None where no agent tells."""

    before: int
    plugged: int
    online: int | None


class Cpus:
    """``vm.cpus``: how many processors the guest has."""

    def __init__(self, vm: Connection, bus: Bus) -> None:
        self._vm = vm
        self._bus = bus

    async def now(self) -> CpusNow:
        """What it has now (query-cpus-fast, query-hotpluggable-cpus,
        guest-get-vcpus). Raises as `Connection.execute` does."""
        vm = self._vm
        plugged = await self._count()
        places = await self._places()
        ours = [
            each.qom_path.rpartition("/")[2]
            for each in places
            if each.qom_path and each.qom_path.startswith(f"{PERIPHERAL}/")
        ]
        # Those of the start have no id; the first of all stays.
        first = [
            each.qom_path
            for each in places[1:]
            if each.qom_path and not each.qom_path.startswith(f"{PERIPHERAL}/")
        ]
        return CpusNow(
            plugged=plugged,
            max=sum(each.vcpus_count for each in places) or plugged,
            removable=(*reversed(ours), *reversed(first)),
            online=_online(await ask_agent(vm, "guest-get-vcpus")),
        )

    async def _count(self) -> int:
        cpus = await self._vm.execute(QueryCpusFast())
        return len(cpus)

    async def _places(self) -> list[HotpluggableCpu]:
        """The sockets for processors in their order; none on a machine without."""
        try:
            places = await self._vm.execute(QueryHotpluggableCpus())
        except CommandError:
            return []
        order = ("node-id", "socket-id", "die-id", "cluster-id", "module-id")
        keys = (*order, "core-id", "thread-id")
        return sorted(places, key=lambda e: [e.props.get(key, 0) for key in keys])

    async def check(self, count: int) -> None:
        """Raises what `resize` would, as far as that can be told before."""
        now = await self.now()
        _admit(self._vm.name, now, count)
        self._check_emulation(count - now.plugged)
        await self._check_guest(now, count)

    async def resize(self, count: int, *, timeout: float = PATIENCE) -> CpusChange:
        """Gives the guest ``count`` processors in all, and waits until it uses them.

        Plugs in (device_add, ACPI_DEVICE_OST) or out (device_del, DEVICE_DELETED), and
        brings online through the agent what the guest has left lying
        (guest-set-vcpus). ``timeout`` is for each of them. Raises SpecError outside of
        what is possible, StateError when the guest cannot hear of it, HotplugError
        when it has no room, refuses or has not answered. Those that came before are
        then taken back, as they are when this is cut off.
        """
        vm = self._vm
        async with self._bus.changing():
            now = await self.now()
            _admit(vm.name, now, count)
            self._check_emulation(count - now.plugged)
            if count != now.plugged:
                await self._check_guest(now, count)
            added: list[str] = []
            if count < now.plugged:
                for id_ in now.removable[: now.plugged - count]:
                    await self._unplug(id_, timeout)
            else:
                added = await self._plug_in(count - now.plugged, timeout)
            try:
                online = await self._all_online(count, timeout)
            except HotplugError:
                raise  # it has accepted them, and may still use them
            except BaseException:
                await carried_out(self._give_up(added, BRIEF))
                raise
            return CpusChange(before=now.plugged, plugged=count, online=online)

    def _check_emulation(self, more: int) -> None:
        """Raises StateError where another processor would end QEMU: under TCG it
        frees what belongs to one twice when one comes after another has gone."""
        vm = self._vm
        if more > 0 and lost_one(vm):
            raise StateError(
                f"plug a processor into {vm.name}", "running",
                "QEMU would end: under emulation (TCG) none can come after one has "
                "gone",
                hint=f"for its next start: qemuctl set {vm.name} --cpus N --config",
            )  # fmt: skip

    async def _check_guest(self, now: CpusNow, count: int) -> None:
        """Raises StateError when the guest cannot hear of it, HotplugError when its
        kernel has no room for so many."""
        vm = self._vm
        await require_guest(vm, f"change the processors of {vm.name}")
        if count <= now.plugged:
            return
        possible = await possible_cpus(vm)
        if possible is None or count <= possible:
            return
        hint = f"for its next start: qemuctl set {vm.name} --cpus {count} --config"
        if vm.record.accel == "tcg":
            hint += (
                "\na new Linux takes them only on a hypervisor that it knows, which "
                "emulation is not;\nsee cpu.hypervisor in: qemuctl spec schema"
            )
        raise HotplugError(
            f"the guest of {vm.name} cannot have {count} processors before it boots "
            f"again: its kernel has room for {possible}",
            "refused",
            hint=hint,
        )

    # -- in ----------------------------------------------------------------

    async def _plug_in(self, more: int, timeout: float) -> list[str]:
        """Plugs in so many, or none; gives their ids."""
        free = [each for each in await self._places() if each.qom_path is None]
        taken = await self._bus.devices()
        ids = [id_ for n in range(1, 4097) if (id_ := f"cpu{n}") not in taken]
        done: list[str] = []
        for place, id_ in zip(free[:more], ids[:more], strict=True):
            try:
                await self._plug(place, id_, timeout)
            except HotplugError as error:
                left = await carried_out(self._give_up(done, timeout))
                if not left:
                    raise
                pending = {each.device for each in self._bus.journal.changes()}
                raise HotplugError(
                    f"{error.message}; still there: {', '.join(left)}",
                    "pending" if pending.intersection(left) else error.outcome,
                    hint=error.hint,
                ) from error
            except BaseException:
                await carried_out(self._give_up(done, BRIEF))
                raise
            done.append(id_)
        return done

    async def _give_up(self, ids: list[str], timeout: float) -> list[str]:
        """Takes processors out again, in ``timeout`` seconds together and a little
        for each; gives those that are still there."""
        loop, left = asyncio.get_running_loop(), []
        end = loop.time() + timeout
        for id_ in reversed(ids):
            patience = max(end - loop.time(), 0.5)
            if not await give_up(self._bus, _removal(id_), timeout=patience):
                left.append(id_)
        return left

    async def _plug(self, place: HotpluggableCpu, id_: str, timeout: float) -> None:
        vm = self._vm
        seen = eventlog.end(vm.paths.events)
        async with gone_if_cut_off(self._bus, _removal(id_)):
            async with self._bus.adding(Change(device=id_, removal=False)):
                await device_add(
                    self._bus, {"driver": place.type, "id": id_, **place.props}
                )
            answer = await accepted(vm, seen, id_, timeout)
        if answer:
            return
        outcome, there = await take_back(self._bus, _removal(id_), timeout=timeout)
        said = "did not answer to" if answer is None else "did not accept"
        raise HotplugError(
            f"the guest of {vm.name} {said} another processor{there}",
            outcome,
            hint=f"its own words: qemuctl exec {vm.name} -- dmesg",
        )

    async def _all_online(self, count: int, timeout: float) -> int | None:
        """How many processors the guest uses, once that is ``count``; None where no
        agent tells. Raises HotplugError when it comes to less."""
        end = asyncio.get_running_loop().time() + timeout
        while True:
            reply = await ask_agent(self._vm, "guest-get-vcpus")
            online = _online(reply)
            if reply is None or online is None or online == count:
                return online
            if asyncio.get_running_loop().time() > end:
                raise HotplugError(
                    f"the guest of {self._vm.name} uses {online} of {count} processors",
                    "pending",
                    hint=f"qemuctl exec {self._vm.name} -- "
                    "sh -c 'echo 1 >/sys/devices/system/cpu/cpuN/online'",
                )
            idle = [each for each in reply if each.get("online") is False]
            if idle:
                wake = [{**each, "online": True} for each in idle]
                await ask_agent(self._vm, "guest-set-vcpus", {"vcpus": wake})
            # No event tells that a guest has brought one online.
            await asyncio.sleep(_LOOK)

    # -- out ---------------------------------------------------------------

    async def _unplug(self, id_: str, timeout: float) -> None:
        vm = self._vm
        removal = await let_go(self._bus, _removal(id_), timeout=timeout)
        if removal is Removal.REMOVED:
            return
        left = await self._count()
        said = "did not let go of" if removal is Removal.REFUSED else "still has"
        raise HotplugError(
            f"the guest of {vm.name} {said} the processor {id_}: it has {left}",
            str(removal),
            hint=f"for its next start: qemuctl set {vm.name} --cpus N --config",
        )


def lost_one(vm: Connection) -> bool:
    """Whether a processor has gone from an emulated machine, whose QEMU uses it all
    the same once it has to do with all of them (TCG)."""
    if vm.record.accel != "tcg":
        return False
    gone = DeviceDeleted.NAME
    past = (event for event in eventlog.past(vm.paths.events) if event.name == gone)
    return any(_CPU.match(DeviceDeleted.of(event).path) for event in past)


def _admit(name: str, now: CpusNow, count: int) -> None:
    """Raises SpecError for a number that this run cannot have."""
    least = now.plugged - len(now.removable)
    if count < 1:
        raise SpecError(f"not a number of processors: {count}", key="cpu.count")
    if count > now.max:
        raise SpecError(
            f"too many for this run: {count} (it was started with room for {now.max})",
            key="cpu.max",
            hint="set cpu.max in the spec, or use --config; the next start has it",
        )
    if count < least:
        raise SpecError(
            f"too few for this run: {count} ({name} was started with {least}, which "
            "stay)",
            key="cpu.count",
            hint=f"for its next start: qemuctl set {name} --cpus {count} --config",
        )


def _online(reply: Any) -> int | None:
    """How many processors guest-get-vcpus counts as online."""
    if not isinstance(reply, list) or not all(isinstance(one, dict) for one in reply):
        return None
    return sum(one.get("online") is True for one in reply)


def _removal(id_: str) -> Change:
    return Change(device=id_, removal=True)
