"""Snapshots of a VM that is off: its disks, for there is no RAM then.

One command at a time has the VM's lock, so that nobody starts it meanwhile. What a
killed one has begun is ended by the next one, and by a start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from qemuctl.errors import DamagedFile, QemuctlError, StateError
from qemuctl.image.snapshots import snapshot_apply, snapshot_create, snapshot_delete
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.unknown_drives import check_drives
from qemuctl.registry.offline import locked
from qemuctl.registry.records.past_loads import past_load
from qemuctl.registry.states import Action, State
from qemuctl.registry.vms import find, load
from qemuctl.snapshots.checks import check_known, check_new, one_line, to_revert
from qemuctl.snapshots.disks import Carrier, of_files
from qemuctl.snapshots.records import GUARD, Entry, Records, UnderWay, ended, to_settle
from qemuctl.snapshots.tree import Snapshot, snapshots


def list_snapshots(name: str) -> list[Snapshot]:
    """The snapshots of a VM, as the files of its disks have them.

    Raises NotFound, SpecError, ImageError.
    """
    return snapshots(Records.read(find(name).snapshots), of_files(name))


async def create_snapshot(vm: str, name: str, *, description: str = "") -> Snapshot:
    """Keeps the disks of a VM as they are (qemu-img snapshot -c).

    On all of them or on none. Raises UsageError for a name, StateError when the VM
    is on or a disk holds no snapshots, ImageError, ImageInUse.
    """
    description = one_line(description)
    async with _locked(vm, Action.SNAPSHOT) as paths:
        check_drives(load(vm), Action.SNAPSHOT, State.OFF)
        records, disks = Records.read(paths.snapshots), of_files(vm)
        check_new(vm, name, State.OFF, records, disks)
        entry = Entry(
            name=name,
            created_at=time.time(),
            state=State.OFF,
            consistency="off",
            disks=tuple(disk.id for disk in disks),
            description=description,
        )
        UnderWay(what="create", name=name).begin(paths)
        try:
            for disk in disks:
                await snapshot_create(disk.path, name)
            records.added(entry).write(paths.snapshots)
        except BaseException:
            with contextlib.suppress(QemuctlError):
                await _settle(paths)
            raise
        ended(paths)
    return next(one for one in list_snapshots(vm) if one.name == name)


async def take_disks_back(vm: str, name: str) -> Entry:
    """Takes the disks of a VM that is off back to a snapshot of disks only, all or
    none; where nobody knows what was begun on them, also to one with RAM, for they
    come first. Gives what is recorded of it.

    Raises StateError when there is none or the VM is on, ImageError.
    """
    async with _locked(vm, Action.REVERT, damaged_too=True) as paths:
        check_drives(load(vm), Action.REVERT, State.OFF)
        records, disks = Records.read(paths.snapshots), of_files(vm)
        entry = to_revert(vm, name, State.OFF, records, disks)
        if paths.snapshotting.exists() or not entry.has_ram:
            await _apply(paths, entry, disks)
            records.at(name).write(paths.snapshots)
        return entry


async def remove_snapshot(vm: str, name: str) -> None:
    """Removes a snapshot (qemu-img snapshot -d); its children become its parent's.

    Raises StateError when there is none or the VM is on, ImageError.
    """
    async with _locked(vm, Action.FORGET) as paths:
        check_drives(load(vm), Action.FORGET, State.OFF)
        records, disks = Records.read(paths.snapshots), of_files(vm)
        check_known(vm, name, Action.FORGET, State.OFF, records, disks)
        UnderWay(what="remove", name=name).begin(paths)
        try:
            await _delete(paths, name)
            records.removed(name).write(paths.snapshots)
        except QemuctlError:
            ended(paths)  # it is shown as what is left of it
            raise
        ended(paths)


async def settle(
    vm: str, action: Action = Action.FORGET, *, as_they_are: bool = False
) -> None:
    """Ends what a killed command has begun on the disks of a VM that is off.

    Where nobody can tell what that was it raises DamagedFile, or forgets it, if the
    disks are to be taken ``as_they_are``. Raises StateError when the VM is on, or
    another command is at work; ImageError.
    """
    if find(vm).snapshotting.exists():
        async with _locked(vm, action, damaged_too=as_they_are) as paths:
            ended(paths)


@contextlib.asynccontextmanager
async def _locked(
    vm: str, action: Action, *, damaged_too: bool = False
) -> AsyncIterator[VmPaths]:
    """With ``damaged_too`` a note that makes no sense is still there in the block."""
    with locked(vm, action) as paths:
        try:
            await _settle(paths)
        except DamagedFile:
            if not damaged_too:
                raise
        yield paths


async def _settle(paths: VmPaths) -> None:
    """Ends what was begun: what is not written down was not made, and a load that
    QEMU has begun is finished."""
    begun = to_settle(paths)
    if begun is None:
        return
    mark, records = begun
    if mark.what == "load":
        await _finish(paths, mark, records)
    if mark.what == "apply":
        await _take_back(paths, mark.name)
    if mark.what == "remove" or (
        mark.what == "create" and mark.name not in records.entries
    ):
        await _delete(paths, mark.name)
        if mark.name in records.entries:
            records.removed(mark.name).write(paths.snapshots)
    ended(paths)


async def _apply(paths: VmPaths, entry: Entry, disks: Sequence[Carrier]) -> None:
    """Takes all disks back to a snapshot, or leaves them as they are.

    What they hold is kept until all of them are there.
    """
    for disk in disks:
        if GUARD in disk.tags:  # of another one, of which nobody knows how it ended
            await snapshot_delete(disk.path, GUARD)
    UnderWay(what="apply", name=entry.name).begin(paths)
    try:
        for disk in disks:
            await snapshot_create(disk.path, GUARD)
        for disk in disks:
            await snapshot_apply(disk.path, entry.name)
    except BaseException:
        with contextlib.suppress(QemuctlError):
            await _settle(paths)
        raise
    # From here on it has happened.
    UnderWay(what="remove", name=GUARD).begin(paths)
    await _delete(paths, GUARD)
    ended(paths)


async def _finish(paths: VmPaths, mark: UnderWay, records: Records) -> None:
    """Has all disks where QEMU was to take them, unless the guest has run since: what
    it has written then is not lost."""
    past, entry = past_load(paths.events, mark.job), records.entries.get(mark.name)
    if entry is None or not past.began or (past.failed and past.ran):
        return
    if not past.ran:
        readable = _readable(paths, mark.name)
        disks = [disk for disk in readable if disk.id in entry.disks]
        if any(mark.name not in disk.tags for disk in disks):
            return  # QEMU has looked first, and changed nothing
        for disk in disks:
            await snapshot_apply(disk.path, mark.name)
    records.at(mark.name).write(paths.snapshots)


def _readable(paths: VmPaths, name: str) -> list[Carrier]:
    disks = of_files(paths.name)
    for disk in disks:
        if disk.problem is not None:
            raise StateError(
                f"end the revert of {paths.name} to {name}", State.OFF,
                f"{disk.id}: {disk.problem}",
            )  # fmt: skip
    return disks


async def _take_back(paths: VmPaths, name: str) -> None:
    disks = _readable(paths, name)
    for disk in disks:
        if GUARD in disk.tags:
            await snapshot_apply(disk.path, GUARD)
    await _delete(paths, GUARD)


async def _delete(paths: VmPaths, name: str) -> None:
    for disk in of_files(paths.name):
        if name in disk.tags:
            await snapshot_delete(disk.path, name)
