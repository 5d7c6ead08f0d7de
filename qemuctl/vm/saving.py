"""``vm.save``: a running machine becomes a file, and its QEMU ends.

::

    stop ─► migrate to a file beside the target ─► head, sum ─► target ─► quit

Until the file has its name nothing is lost: whatever goes wrong, or Ctrl-C, has the
guest go on as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qemuctl.errors import HostError, QemuctlError, QmpError, StateError
from qemuctl.host.discovery import probe
from qemuctl.image.progress import Progress, silent
from qemuctl.image.whole import whole
from qemuctl.qmp.commands import Cont, Quit
from qemuctl.qmp.migration import (
    MigrationFailed,
    QueryMigrate,
    QueryMigrateCapabilities,
    save_state,
    set_capabilities,
)
from qemuctl.spec import dump
from qemuctl.thread import Tick, in_thread
from qemuctl.vm.likeness import likeness
from qemuctl.vm.snapshot_topology import topology
from qemuctl.vm.state_file import About, Compression, begin, digest, disks_then, finish
from qemuctl.vm.states import Action, State

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

# Seconds between looks at how far QEMU is.
_LOOK = 0.2
_QUIT_PATIENCE = 10.0
_PART = 1024 * 1024
# zstd's own default.
_LEVEL = 3
_MAPPED = {"mapped-ram", "multifd"}


async def save(
    vm: Vm,
    target: Path | None = None,
    *,
    compression: Compression | None = None,
    progress: Progress = silent,
) -> About:
    """Writes RAM and devices' state to a file (migrate), and ends QEMU (quit).

    Without ``target`` the VM's next start goes on from there. ``progress`` is told
    bytes done and in all. What fails, or is cut off, leaves the VM as it was, and no
    file. Raises StateError, ImageError and HostError where the file cannot be
    written, MigrationFailed with QEMU's words.
    """
    check_movable(vm, Action.SAVE)
    async with vm.live.changing(Action.SAVE):
        state = await vm.state()
        about = await _about(vm, state, compression)
        own = target is None
        path = vm.paths.saved if target is None else target
        async with _standing_still(vm, state):
            with whole(path, replace=own, durable=False) as fresh:
                about = await _written(vm, fresh, about, progress)
        # From here on the file is what there is of the VM.
        await asyncio.shield(_end(vm))
    return about


def check_movable(vm: Vm, action: Action) -> None:
    """Raises StateError for a VM whose state is of no use to another QEMU."""
    reason = hint = None
    if vm.record.attached:
        reason = "it is a throwaway VM, and ends with who started it"
    elif vm.record.template is not None:
        reason = f"its RAM is that of the template {vm.record.template}"
        hint = f"stopped and started again it has its own: qemuctl stop {vm.name}"
    if reason is not None:
        raise StateError(f"{action} {vm.name}", "running", reason, hint=hint)


async def _about(vm: Vm, state: State, compression: Compression | None) -> About:
    like = await likeness(vm)
    ballooned = None
    with contextlib.suppress(OSError, ValueError):
        ballooned = int(vm.paths.ballooned.read_text())
    return About(
        name=vm.name,
        saved_at=time.time(),
        qemu=vm.record.version,
        paused=state is State.PAUSED,
        spec=dump(like.spec),
        configured=vm.paths.spec.read_text(),
        shape=like.shape,
        topology=await topology(vm),
        # As many as there will be: the head must have room for them.
        disks=disks_then(await _files(vm)),
        ballooned=ballooned,
        compression=compression,
        mapped=compression is None and await _maps(vm),
    )


async def _files(vm: Vm) -> dict[str, Path]:
    return {disk.id: disk.path for disk in await vm.disks.list()}


async def _maps(vm: Vm) -> bool:
    """Whether each page of RAM can have a place of its own in the file."""
    known = await vm.execute(QueryMigrateCapabilities())
    names = {each.capability for each in known}
    return names >= _MAPPED and "file" in _transports(vm)


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
            await asyncio.shield(_go_on(vm))
        raise


async def _go_on(vm: Vm) -> None:
    with contextlib.suppress(QemuctlError):  # QEMU has ended: there is another error
        await vm.execute(Cont())


async def _written(vm: Vm, path: Path, about: About, progress: Progress) -> About:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as raw:
        file: BinaryIO = raw
        start = begin(file, about)
        sum_ = await _streamed(vm, path, file, about, progress)
        with _room_named(path):
            # QEMU has given up the disks by now, so that nobody changes them.
            disks = disks_then(await _files(vm))
            about = replace(about, disks=disks)
            return await in_thread(lambda _: finish(file, about, start, sum_))


async def _streamed(
    vm: Vm, path: Path, file: BinaryIO, about: About, progress: Progress
) -> str:
    """Has QEMU write its state; gives the sum of what is in the file."""
    over = threading.Event()
    by_name = path if "file" in _transports(vm) and not about.compression else None
    caps = _MAPPED if about.mapped else ()
    session = await vm.monitor()
    await set_capabilities(session, *caps)
    # In the order in which it is written; of a mapped one nobody knows that.
    grows = (lambda: not over.is_set()) if not about.mapped else (lambda: False)
    with path.open("rb") as again:
        again.seek(file.tell())
        summing = partial(digest, again, grows=grows)
        following = None
        if not about.mapped:
            following = asyncio.ensure_future(in_thread(lambda t: summing(tick=t)))
        try:
            async with _watched(vm, progress):
                if about.compression is not None:
                    await _compressed(vm, file)
                else:
                    await _saved(vm, file, by_name)
            over.set()
            if following is None:
                return await in_thread(lambda tick: summing(tick=tick))
            return await following
        finally:
            over.set()
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


def _transports(vm: Vm) -> frozenset[str]:
    return probe(Path(vm.record.argv[0])).transports


async def _saved(vm: Vm, file: BinaryIO, by_name: Path | None) -> None:
    session = await vm.monitor()
    try:
        await vm.unless_ended(save_state(session, file, by_name=by_name))
    except MigrationFailed as error:
        room = _room(file)
        raise MigrationFailed(error.message, hint=room) from error


def _room(file: BinaryIO) -> str | None:
    status = os.fstatvfs(file.fileno())
    if status.f_bavail * status.f_frsize < _PART:
        return f"no room is left where it was to go: {file.name}"
    return None


@contextlib.contextmanager
def _room_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"the state cannot be written to {path.parent}: {error.strerror}"
        ) from error


async def _compressed(vm: Vm, file: BinaryIO) -> None:
    """Has QEMU write into a pipe, and what comes out of it, smaller, to the file."""
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reader:
        packing = asyncio.ensure_future(in_thread(partial(_pack, reader, file)))
        try:
            with os.fdopen(into, "wb") as writer:
                await _either(packing, _saved(vm, writer, None))
            await packing
        finally:
            packing.cancel()
            await asyncio.gather(packing, return_exceptions=True)


async def _either(
    packing: asyncio.Future[None], saving: Coroutine[Any, Any, None]
) -> None:
    """Waits for QEMU, unless the other end of its pipe fails first."""
    task = asyncio.ensure_future(saving)
    try:
        await asyncio.wait({task, packing}, return_when=asyncio.FIRST_COMPLETED)
        if packing.done() and not task.done():
            packing.result()
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _pack(reader: BinaryIO, file: BinaryIO, tick: Tick) -> None:
    import zstandard  # most VMs are saved as they are

    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    try:
        while part := _next(reader, tick):
            file.write(packer.compress(part))
        file.write(packer.flush())
    finally:
        reader.close()  # QEMU must not wait for who has gone


def _next(reader: BinaryIO, tick: Tick) -> bytes:
    """What comes next out of a pipe; a QEMU that hangs can be called off."""
    while not select.select([reader], [], [], _LOOK)[0]:
        tick()
    tick()
    return os.read(reader.fileno(), _PART)


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
        with contextlib.suppress(QmpError):
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
