"""``vm.snapshots``: states of the whole VM, disks and RAM, that it can go back to.

A snapshot lies in the qcow2 files of the VM's disks, the RAM in one of them. What
was begun is written down first, and done or undone by whichever command comes next.
What there is for a VM that is off, is in `offline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qemuctl.connection.connection import Connection
from qemuctl.errors import AgentError, CommandError, HostError, QemuctlError, StateError
from qemuctl.hotplug.bus import Bus
from qemuctl.power.guest_clock import set_clock
from qemuctl.qmp.commands import Cont, QueryStatus
from qemuctl.qmp.jobs import JobInfo, snapshot_at_once
from qemuctl.registry.disks.unknown_drives import check_drives
from qemuctl.registry.records.past_loads import past_load
from qemuctl.registry.records.started_spec import started_spec
from qemuctl.registry.states import Action, State
from qemuctl.snapshots import jobs
from qemuctl.snapshots.checks import check_known, check_new, one_line, to_revert
from qemuctl.snapshots.disks import Carrier, check_room, of_running, room, roomiest
from qemuctl.snapshots.guest import frozen, offers_freezing, thaw
from qemuctl.snapshots.records import GUARD, Entry, Records, UnderWay, ended, to_settle
from qemuctl.snapshots.topology import differences, topology
from qemuctl.snapshots.tree import Snapshot, snapshots
from qemuctl.structs import Struct

if TYPE_CHECKING:  # loaded when it is used
    from qemuctl.power.power import Power

T = TypeVar("T")

# With these words a load fails before it has changed anything (migration/savevm.c).
_UNTOUCHED = (
    "does not exist in one or more devices",
    "does not support snapshots",
    "disk-only snapshot",
    "vmstate block device",
)
# And with these after it may have taken some disks back (block/snapshot.c).
_HALFWAY = "Could not load snapshot"


class Reverted(Struct):
    """What a revert came to: the VM's state now, and why its guest's clock was not
    set (None when it was, or the VM is off)."""

    name: str
    state: State
    clock_problem: str | None = None


class Snapshots:
    """The snapshots facet of one VM that is on."""

    def __init__(self, vm: Connection, bus: Bus, power: Callable[[], Power]) -> None:
        self._vm = vm
        self._bus = bus
        self._power = power

    async def list(self) -> list[Snapshot]:
        """All snapshots, each after its parent (query-block). Raises QmpError."""
        return snapshots(self._records(), await of_running(self._vm))

    async def create(
        self, name: str, *, description: str = "", disk_only: bool = False
    ) -> Snapshot:
        """Keeps RAM and disks as they are now (snapshot-save); the VM stands still
        meanwhile.

        With ``disk_only`` the disks alone, all at one moment (transaction,
        blockdev-snapshot-internal-sync), with file systems frozen where the guest's
        agent offers it. A failure leaves nothing behind, and the VM goes on.
        Raises UsageError for a name, StateError where a disk holds no snapshots or
        there is no room, CommandError, UnexpectedExit; AgentError when nobody tells
        that a frozen guest was thawed.
        """
        description = one_line(description)
        async with self._changing(Action.SNAPSHOT):
            vm, state = self._vm, await self._vm.state()
            check_drives(started_spec(vm.paths), Action.SNAPSHOT, state)
            records, disks = self._records(), await of_running(vm)
            check_new(vm.name, name, state, records, disks)
            entry = Entry(
                name=name,
                created_at=time.time(),
                state=state,
                consistency="crash" if disk_only else "ram",
                disks=tuple(disk.id for disk in disks),
                description=description,
                qemu=vm.record.version,
                topology=await topology(self._bus),
                ballooned=self._ballooned(),
            )
            if disk_only:
                freezes = await offers_freezing(vm)
                mark = UnderWay(what="create", name=name, frozen=freezes)
                await self._make(mark, partial(self._keep_disks, entry, disks))
            else:
                where = roomiest(disks)
                await check_room(vm, where)
                mark = UnderWay(what="create", name=name)
                await self._make(mark, partial(self._save, entry, where, disks))
        every = snapshots(self._records(), await of_running(vm))
        return next(one for one in every if one.name == name)

    async def revert(self, name: str) -> Reverted:
        """Goes back to a snapshot with RAM (snapshot-load): the VM is then in the
        state that it was in, running or paused.

        Raises StateError before anything is changed where the snapshot is not
        whole, has disks only, or the VM is made of something else by now; and with
        QEMU's own words, and what has become of the VM, when the load fails.
        """
        vm = self._vm
        async with self._changing(Action.REVERT):
            state = await vm.state()
            check_drives(started_spec(vm.paths), Action.REVERT, state)
            disks = await of_running(vm)
            entry = to_revert(
                vm.name, name, state, self._records(), disks,
                fork_of=vm.record.template,
            )  # fmt: skip
            await self._check_fits(entry, state)
            state = await _in_full(vm.unless_ended(self._load(entry, disks, state)))
        problem: str | None = "the VM is paused"
        if state is State.RUNNING:
            problem = await set_clock(vm)
        return Reverted(name=name, state=state, clock_problem=problem)

    async def remove(self, name: str) -> None:
        """Removes a snapshot (snapshot-delete); its children become its parent's.

        Raises StateError when there is none, CommandError.
        """
        vm = self._vm
        async with self._changing(Action.FORGET):
            state, disks = await vm.state(), await of_running(vm)
            check_drives(started_spec(vm.paths), Action.FORGET, state)
            check_known(vm.name, name, Action.FORGET, state, self._records(), disks)
            UnderWay(what="remove", name=name).begin(vm.paths)
            try:
                await self._delete(name)
                self._records().removed(name).write(vm.paths.snapshots)
            except (CommandError, HostError):
                ended(vm.paths)  # it is shown as what is left of it
                raise
            ended(vm.paths)

    async def settle(self) -> None:
        """Ends what a killed command has begun, unless another one is at work.

        Raises WaitTimeout when one is, StateError, QmpError.
        """
        if self._vm.paths.snapshotting.exists():
            async with self._changing(Action.FORGET, patience=0.0):
                pass

    # -- parts -------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _changing(
        self, action: Action, patience: float = 60.0
    ) -> AsyncIterator[None]:
        async with self._bus.changing(action, patience=patience):
            await self._settle(action)
            yield

    def _records(self) -> Records:
        return Records.read(self._vm.paths.snapshots)

    async def _make(
        self, mark: UnderWay, work: Callable[[], Coroutine[Any, Any, Entry]]
    ) -> None:
        """Makes a snapshot and writes it down, or leaves nothing of it."""
        mark.begin(self._vm.paths)
        try:
            entry = await self._vm.unless_ended(work())
            self._records().added(entry).write(self._vm.paths.snapshots)
        except BaseException:
            # QEMU cannot be interrupted while it saves; what it has saved by then is
            # removed. Who does not wait for that leaves it to the next command.
            with contextlib.suppress(QemuctlError):
                await self._settle(Action.SNAPSHOT)
            raise
        ended(self._vm.paths)

    async def _save(
        self, entry: Entry, where: Carrier, disks: Sequence[Carrier]
    ) -> Entry:
        nodes = [disk.node for disk in disks]
        try:
            await jobs.save(self._vm, entry.name, vmstate=where.node, nodes=nodes)
        except CommandError as error:
            # QEMU has no other word than an I/O error for a disk that is full.
            error.hint = f"the RAM was to go to {where.path}: {room(where)} left there"
            raise
        return entry

    async def _keep_disks(self, entry: Entry, disks: Sequence[Carrier]) -> Entry:
        nodes = [disk.node for disk in disks]
        async with frozen(self._vm) as still:
            await self._vm.execute(snapshot_at_once(nodes, entry.name))
        return replace(entry, consistency="frozen") if still else entry

    async def _settle(self, action: Action) -> None:
        """Ends what was begun: what is not written down was not made.

        Raises StateError while a load that has failed is to be finished, which it is
        once the VM is off.
        """
        paths = self._vm.paths
        begun = to_settle(paths)
        if begun is None:
            return
        mark, records = begun
        past = await jobs.clear(self._vm)
        if mark.frozen:
            with contextlib.suppress(AgentError):
                await thaw(self._vm)
        if mark.what == "load":
            await self._end_load(mark, past.get(mark.job or ""), action)
        if mark.what == "apply":
            await self._delete(GUARD)
        if mark.what == "remove" or (
            mark.what == "create" and mark.name not in records.entries
        ):
            await self._delete(mark.name)
            if mark.name in records.entries:
                records.removed(mark.name).write(paths.snapshots)
        ended(paths)

    async def _end_load(
        self, mark: UnderWay, job: JobInfo | None, action: Action
    ) -> None:
        """Tells what has become of a load whose command has gone."""
        vm, entry = self._vm, self._records().entries.get(mark.name)
        past = past_load(vm.paths.events, mark.job)
        if entry is None or not past.began:
            return
        if not past.failed:
            self._arrived(entry)
        elif not past.ran and (job is None or _HALFWAY in (job.error or "")):
            reason = f"its revert to {mark.name} has failed"
            raise self._halfway(action, mark.name, await vm.state(), reason)

    async def _delete(self, name: str) -> None:
        disks = await of_running(self._vm)
        nodes = [disk.node for disk in disks if name in disk.tags]
        await jobs.delete(self._vm, name, nodes)

    async def _check_fits(self, entry: Entry, state: State) -> None:
        vm = self._vm
        if not entry.has_ram:
            raise StateError(
                f"revert {vm.name}", state, f"{entry.name} has disks only, and the VM "
                "is on",
                hint=f"first: qemuctl stop {vm.name}",
            )  # fmt: skip
        found = differences(entry.topology, await topology(self._bus))
        if found:
            raise StateError(
                f"revert {vm.name}", state,
                f"its RAM would not fit: {'; '.join(found)}",
                hint="give it back what it had, or take out what came since",
            )  # fmt: skip

    async def _load(
        self, entry: Entry, disks: Sequence[Carrier], state: State
    ) -> State:
        vm, name = self._vm, entry.name
        where = max(disks, key=lambda disk: disk.tags[name].ram_bytes)
        nodes, job = [disk.node for disk in disks], jobs.new_load()
        vm.agent.release()
        if entry.state != State.RUNNING:
            await self._hold(state)
        with contextlib.suppress(HostError):  # a full disk is no reason to stay here
            UnderWay(what="load", name=name, job=job).begin(vm.paths)
        # Where it does not come to an end, whoever comes next finds that it began.
        try:
            await jobs.load(vm, name, job=job, vmstate=where.node, nodes=nodes)
        except CommandError as error:
            raise await self._not_loaded(error, entry, state) from error
        if entry.state == State.RUNNING:
            await self._go_on()
        self._arrived(entry)
        ended(vm.paths)
        return await vm.state()

    async def _hold(self, state: State) -> None:
        """Stops the CPUs in such a way that a load leaves the VM paused."""
        if state is State.RUNNING:
            # QEMU would let it go on, for it ran.
            await self._power().pause()
        elif state is State.PANICKED:
            # QEMU would call it panicked still; only a reset makes it forget.
            await self._power().reset()

    def _arrived(self, entry: Entry) -> None:
        self._restore_ballooned(entry)
        self._records().at(entry.name).write(self._vm.paths.snapshots)

    async def _go_on(self) -> None:
        if not (await self._vm.execute(QueryStatus())).running:
            await self._vm.execute(Cont())

    async def _not_loaded(
        self, error: CommandError, entry: Entry, before: State
    ) -> StateError:
        vm = self._vm
        if _HALFWAY in error.desc:
            return self._halfway(Action.REVERT, entry.name, before, error.desc)
        ended(vm.paths)
        action = f"revert {vm.name} to {entry.name}"
        if any(words in error.desc for words in _UNTOUCHED):
            if before is State.RUNNING:
                await self._go_on()
            now = await vm.state()
            unchanged = " as before" if now is before else ""
            return StateError(
                action, before, f"{error.desc}; the VM is {now}{unchanged}"
            )
        return StateError(
            action, before,
            f"{error.desc}; its disks are as they were then, but its RAM is not: the "
            "VM is stopped for good",
            hint=f"qemuctl kill {vm.name}; then start it, or revert again",
        )  # fmt: skip

    def _halfway(
        self, action: Action, name: str, state: State, reason: str
    ) -> StateError:
        vm = self._vm.name
        return StateError(
            f"{action} {vm}", state,
            f"{reason}; some of its disks may be as they were then, and others not: "
            "the VM must not go on",
            hint=f"qemuctl kill {vm}; its next start takes all of them to {name}",
        )  # fmt: skip

    # QEMU does not tell what the balloon was asked to hold.

    def _ballooned(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int(self._vm.paths.ballooned.read_text())
        return None

    def _restore_ballooned(self, entry: Entry) -> None:
        paths = self._vm.paths
        with contextlib.suppress(FileNotFoundError):
            began = paths.snapshotting.stat().st_mtime_ns
            if paths.ballooned.stat().st_mtime_ns > began:
                return  # it was asked for something else since
        if entry.ballooned is None:
            paths.ballooned.unlink(missing_ok=True)
        else:
            paths.ballooned.write_text(f"{entry.ballooned}\n")


async def _in_full(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which comes to its end also when we are cut off: half
    of it would be worse than either. Its error is told rather than that we were cut
    off. Who cuts us off twice ends it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error from None
        raise
