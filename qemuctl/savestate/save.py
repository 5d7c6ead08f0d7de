"""A running machine becomes a file, and its QEMU ends.

::

    stop ─► migrate to a file beside the target ─► head, sum ─► target ─► quit

Until the file has its name nothing is lost: whatever goes wrong, or Ctrl-C, has the
guest go on as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from qemuctl.errors import QemuctlError, QmpError, StateError, WaitTimeout
from qemuctl.host.discovery import probe
from qemuctl.hotplug.cpus import lost_one
from qemuctl.hotplug.guest_ready import carried_out
from qemuctl.image.progress import Progress, silent
from qemuctl.image.whole import whole
from qemuctl.paths import VmPaths
from qemuctl.qmp.commands import Cont, QueryStatus, Quit
from qemuctl.qmp.migration import (
    MigrationFailed,
    QueryMigrate,
    QueryMigrateCapabilities,
    cancel,
    save_state,
)
from qemuctl.registry.disks.unknown_drives import check_drives
from qemuctl.registry.records.saved_marker import is_saved
from qemuctl.registry.records.started_spec import started_spec
from qemuctl.registry.saved_state import (
    MAPPED,
    About,
    Compression,
    begin,
    digest,
    disks_then,
    finish,
    prepare_stream,
    read_state,
    within,
)
from qemuctl.registry.states import Action, State
from qemuctl.savestate.foreign_state import remember_save
from qemuctl.spec import Spec, dump
from qemuctl.thread import Tick, in_thread
from qemuctl.vm.running_spec import likeness
from qemuctl.zstd_pipe import pack

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

T = TypeVar("T")

# Seconds between looks at how far QEMU is.
_LOOK = 0.2
_QUIT_PATIENCE = 10.0
# A disk with less room than that many bytes is what a write has failed for.
_FULL = 1024 * 1024


async def save(
    vm: Vm,
    target: Path | None = None,
    *,
    compression: Compression | None = None,
    progress: Progress = silent,
) -> About:
    """Writes RAM and devices' state to a file (migrate), and ends QEMU (quit).

    Without ``target`` the VM's next start goes on from there; see also `restore`.
    ``progress`` is told bytes done and in all. What fails, or is cut off, leaves the
    VM as it was, and no file. Raises StateError, ImageError where the file exists or
    cannot be written, MigrationFailed with QEMU's words.
    """
    check_movable(vm, Action.SAVE)
    async with vm.bus.changing(Action.SAVE):
        await _check_not_left(vm)
        state = await vm.state()
        if target is not None:  # the drive could change before it is restored
            check_drives(started_spec(vm.paths), Action.SAVE, state)
        path = vm.paths.saved if target is None else target
        async with _standing_still(vm, state):
            with whole(path, replace=target is None) as fresh:
                about = await _written(vm, fresh, state, compression, progress)
                if target is not None:
                    # Where it cannot, `restore` takes it for somebody else's.
                    with contextlib.suppress(OSError):
                        remember_save(vm.paths, read_state(fresh))
        # From here on the file is what there is of the VM.
        await carried_out(_end(vm))
    return about


def check_movable(vm: Vm, action: Action) -> None:
    """Raises StateError for a VM whose state is of no use to another QEMU."""
    reason = hint = None
    if vm.record.attached:
        reason = "it is a throwaway VM, and ends with who started it"
    elif vm.record.template is not None:
        reason = f"its RAM is that of the template {vm.record.template}"
        hint = f"stopped and started again it has its own: qemuctl stop {vm.name}"
    elif lost_one(vm):
        reason = "QEMU would end: a processor of its emulated machine (TCG) has gone"
        hint = f"stopped and started again it can: qemuctl stop {vm.name}"
    if reason is not None:
        raise StateError(f"{action} {vm.name}", "running", reason, hint=hint)


async def _check_not_left(vm: Vm) -> None:
    """Ends what a command that was killed has begun. Raises StateError for a guest
    that QEMU has let go of, and saves no second time."""
    await cancel(await vm.monitor())
    if (await vm.execute(QueryStatus())).status != "postmigrate":
        return
    name = vm.name
    if is_saved(vm.paths):
        raise StateError(
            f"save {name}", State.PAUSED, "it is saved, and only its QEMU was left",
            hint=f"qemuctl kill {name}; it goes on from there with: start; or from "
            f"where it stands, with: resume",
        )  # fmt: skip
    raise StateError(
        f"save {name}", State.PAUSED, "it was to be saved before, and has to run first",
        hint=f"qemuctl resume {name}",
    )  # fmt: skip


async def _about(
    vm: Vm, state: State, compression: Compression | None, *, mapped: bool
) -> About:
    like = await likeness(vm)
    ballooned = None
    with contextlib.suppress(OSError, ValueError):
        ballooned = int(vm.paths.ballooned.read_text())
    return About(
        name=vm.name,
        home=str(vm.paths.state),
        saved_at=time.time(),
        qemu=vm.record.version,
        paused=state is State.PAUSED,
        spec=dump(_own_within(like.spec, vm.paths)),
        shape=like.shape,
        devices=await vm.bus.devices(),
        ballooned=ballooned,
        compression=compression,
        mapped=mapped,
    )


def _own_within(spec: Spec, paths: VmPaths) -> Spec:
    """The spec with files of the VM's own relative to its folder, which may get
    another name."""

    def shorter(path: str | None) -> str | None:
        return path and within(paths.state, Path(path))

    disks = tuple(
        disk.model_copy(update={"path": shorter(disk.path)}) for disk in spec.disks
    )
    boot = spec.boot.model_copy(
        update={
            "kernel": shorter(spec.boot.kernel),
            "initrd": shorter(spec.boot.initrd),
        }
    )
    return spec.model_copy(update={"disks": disks, "boot": boot})


async def _maps(vm: Vm) -> bool:
    """Whether each page of RAM can have a place of its own in a file."""
    known = await vm.execute(QueryMigrateCapabilities())
    return {each.capability for each in known}.issuperset(MAPPED)


def _opens(vm: Vm, path: Path, file: BinaryIO) -> bool:
    """Whether QEMU can open this file by its name: later versions do, where they see
    what this process sees, which may be in another mount namespace."""
    if "file" not in probe(Path(vm.record.argv[0])).transports:
        return False
    with contextlib.suppress(OSError):
        there = Path(f"/proc/{vm.record.qemu.pid}/root{path}").stat()
        return os.path.samestat(there, os.fstat(file.fileno()))
    return False


@contextlib.asynccontextmanager
async def _standing_still(vm: Vm, state: State) -> AsyncIterator[None]:
    """The guest is stopped for the block, and goes on if that does not end well."""
    vm.agent.release()
    try:
        if state is State.RUNNING:
            await vm.power.pause()
        yield
    except BaseException:
        if state is State.RUNNING:
            await carried_out(_go_on(vm))
        raise


async def _go_on(vm: Vm) -> None:
    # Where QEMU has ended or hangs, there is another error to tell.
    with contextlib.suppress(QemuctlError):
        await vm.execute(Cont())


async def _written(
    vm: Vm,
    path: Path,
    state: State,
    compression: Compression | None,
    progress: Progress,
) -> About:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        begin(file)
        by_name = compression is None and _opens(vm, path, file)
        mapped = by_name and await _maps(vm)
        # What the machine is does not change while its RAM is written.
        asking = asyncio.ensure_future(_about(vm, state, compression, mapped=mapped))
        try:
            async with _watched(vm, progress):
                sum_ = await _streamed(
                    vm, path, file, compression, by_name=by_name, mapped=mapped
                )
            about = await vm.unless_ended(_awaited(asking))
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        # QEMU has given up the disks by now, so that nobody changes them.
        files = {disk.id: disk.path for disk in await vm.disks.list()}
        # It may be written anew meanwhile, and says the same.
        files = {id_: path for id_, path in files.items() if path != vm.paths.seed}
        about = replace(about, disks=disks_then(files, vm.paths.state))
        return await in_thread(lambda _: finish(file, about, sum_))


async def _awaited(task: asyncio.Future[T]) -> T:
    return await task


async def _streamed(
    vm: Vm,
    path: Path,
    file: BinaryIO,
    compression: Compression | None,
    *,
    by_name: bool,
    mapped: bool,
) -> str:
    """Has QEMU write its state; gives the sum of what is in the file, which is on the
    disk by then."""
    await prepare_stream(await vm.monitor(), mapped=mapped)
    over = threading.Event()
    with path.open("rb") as again:
        again.seek(file.tell())
        summed = partial(_summed, again, over, mapped)
        summing = asyncio.ensure_future(in_thread(summed))
        try:
            await _from_qemu(vm, path, file, compression, by_name=by_name)
            over.set()
            await in_thread(lambda _: os.fsync(file.fileno()))
            return await summing
        finally:
            summing.cancel()
            await asyncio.gather(summing, return_exceptions=True)


def _summed(file: BinaryIO, over: threading.Event, mapped: bool, tick: Tick) -> str:
    # Nobody knows the order in which a mapped one is written.
    while mapped and not over.wait(_LOOK):
        tick()
    return digest(file, grows=lambda: not over.is_set(), tick=tick)


async def _from_qemu(
    vm: Vm,
    path: Path,
    file: BinaryIO,
    compression: Compression | None,
    *,
    by_name: bool,
) -> None:
    session = await vm.monitor()
    try:
        if compression is not None:
            await pack(file, lambda pipe: vm.unless_ended(save_state(session, pipe)))
        else:
            await vm.unless_ended(
                save_state(session, file, by_name=path if by_name else None)
            )
    except MigrationFailed as error:
        status = os.fstatvfs(file.fileno())
        if status.f_bavail * status.f_frsize < _FULL:
            raise MigrationFailed(
                f"no room left to write {path.name}: {path.parent}"
            ) from error
        raise


@contextlib.asynccontextmanager
async def _watched(vm: Vm, progress: Progress) -> AsyncIterator[None]:
    if progress is silent:
        yield
        return
    watching = asyncio.create_task(_tell(vm, progress))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _tell(vm: Vm, progress: Progress) -> None:
    while True:
        # No event tells how far it is.
        await asyncio.sleep(_LOOK)
        with contextlib.suppress(QmpError, WaitTimeout):
            ram = (await vm.execute(QueryMigrate())).ram
            if ram is not None and ram.total:
                progress(ram.total - ram.remaining, ram.total)


async def _end(vm: Vm) -> None:
    with contextlib.suppress(QemuctlError, TimeoutError):
        async with asyncio.timeout(_QUIT_PATIENCE):
            await vm.execute(Quit(), timeout=_QUIT_PATIENCE)
            await vm.wait_exit()
    if vm.record.qemu.alive():
        await vm.power.kill()
