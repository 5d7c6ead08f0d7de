"""A machine that was saved goes on: at its VM's next start, or as a VM of any name.

The file stays until its guest runs; what cannot be loaded is refused with the reason,
and is still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from functools import partial
from pathlib import Path
from typing import BinaryIO

from qemuctl.errors import (
    MonitorLost,
    QmpError,
    StateFileError,
    WaitTimeout,
)
from qemuctl.paths import VmPaths
from qemuctl.process import Child
from qemuctl.qmp import eventlog
from qemuctl.qmp.commands import Cont
from qemuctl.qmp.events import Resumed
from qemuctl.qmp.migration import MigrationFailed, load_state, set_capabilities
from qemuctl.spec import Spec
from qemuctl.tail import tail
from qemuctl.thread import Tick, in_thread
from qemuctl.vm.bring_up import Origin, bring_up, put_down
from qemuctl.vm.plan import Stages
from qemuctl.vm.snapshot_topology import unlike
from qemuctl.vm.state_file import About, StateFile, read_state
from qemuctl.vm.vm import Vm

# Seconds for QEMU to read what is there; a slow disk may take its time.
_PATIENCE = 600.0
_LOOK = 0.2
_PART = 1024 * 1024


def saved_state(paths: VmPaths) -> StateFile | None:
    """The state that a VM that is off goes on from at its next start; None where
    there is none. Raises StateFileError for one that cannot be used."""
    _settle(paths)
    if not paths.saved.exists():
        return None
    state = read_state(paths.saved)
    since = [
        event
        for event in eventlog.past(paths.events)
        if event.name == Resumed.NAME and event.at > state.about.saved_at
    ]
    if since:
        raise StateFileError(
            f"the saved state of {paths.name} is not of now: its guest has gone on "
            "since"
        )
    return state


def discard(paths: VmPaths) -> None:
    """Forgets the saved state of a VM; its next start is one from its disks."""
    for path in (paths.saved, _resuming(paths)):
        path.unlink(missing_ok=True)


def _resuming(paths: VmPaths) -> Path:
    """What a saved state is called from the moment on in which its guest may run."""
    return paths.saved.with_name(f"{paths.saved.name}.used")


def _settle(paths: VmPaths) -> None:
    """Ends what a command has begun that was killed between the load and the guest's
    first step: the events tell whether it has taken it."""
    used = _resuming(paths)
    if not used.exists():
        return
    if any(event.name == Resumed.NAME for event in eventlog.past(paths.events)):
        used.unlink()
    else:
        used.replace(paths.saved)


async def go_on(
    state: StateFile,
    paths: VmPaths,
    spec: Spec,
    *,
    paused: bool = False,
    progress: Stages | None = None,
) -> Vm:
    """Starts a VM with the state in a file (migrate-incoming), its guest running
    unless it was saved paused, or is to be ``paused``.

    ``spec`` is that of the machine that was saved, with this VM's files. Raises
    StateFileError with the reason where the state does not fit, and as a start does;
    the VM is off then, and the file there.
    """
    check_disks(state)
    about = state.about
    own = state.path == paths.saved
    origin = Origin(shape=about.shape)
    vm, child = await bring_up(
        spec, paths, attached=False, progress=progress, origin=origin
    )
    try:
        found = await unlike(vm, about.topology)
        if found:
            raise StateFileError(
                f"the machine would not be the one that was saved: {state.path}: "
                f"{'; '.join(found)}"
            )
        await _load(vm, child, state)
        _balloon(paths, about)
        if own:
            state.path.replace(_resuming(paths))
        child.detach()
        try:
            if not paused and not about.paused:
                await vm.execute(Cont())
        finally:
            if own:
                _resuming(paths).unlink(missing_ok=True)
        paths.booted.touch()
    except BaseException:
        await asyncio.shield(_undone(vm, child, paths))
        raise
    return vm


async def _undone(vm: Vm, child: Child, paths: VmPaths) -> None:
    await put_down(vm, child)
    with contextlib.suppress(OSError):
        _settle(paths)


def check_disks(state: StateFile) -> None:
    """Raises StateFileError where a disk is not as it was."""
    problems = [p for disk in state.about.disks if (p := disk.problem()) is not None]
    if problems:
        raise StateFileError(
            f"the saved state does not fit any more: {'; '.join(problems)}",
            hint="its disks must be as they were; or start it from these as they are: "
            f"qemuctl start {state.about.name} --fresh",
        )


def _balloon(paths: VmPaths, about: About) -> None:
    if about.ballooned is not None:
        paths.ballooned.write_text(f"{about.ballooned}\n")


async def _load(vm: Vm, child: Child, state: StateFile) -> None:
    """Has QEMU read the state, while its sum is checked: no guest runs before that."""
    verifying = asyncio.ensure_future(in_thread(lambda tick: state.verify(tick)))
    try:
        await _read(vm, child, state)
        await verifying
    except StateFileError:
        # Where the sum is wrong, too, QEMU's own complaint is only a consequence.
        await asyncio.wait({verifying})
        verifying.result()
        raise
    finally:
        verifying.cancel()
        await asyncio.gather(verifying, return_exceptions=True)


async def _read(vm: Vm, child: Child, state: StateFile) -> None:
    session = await vm.monitor()
    caps = ("mapped-ram", "multifd") if state.about.mapped else ()
    try:
        await set_capabilities(session, *caps)
        async with asyncio.timeout(_PATIENCE):
            with state.open() as file:
                if state.about.compression is not None:
                    await _unpacked(vm, file)
                else:
                    by_name = state.path if state.about.mapped else None
                    await load_state(session, file, by_name=by_name)
    except TimeoutError as error:
        raise WaitTimeout("QEMU to read the saved state", _PATIENCE) from error
    except (MonitorLost, MigrationFailed) as error:
        child.disown()
        await child.reaped()
        words = tail(vm.paths.qemu_log, 5).strip() or error.message
        raise StateFileError(
            f"QEMU {vm.record.version} cannot read the saved state (of "
            f"{state.about.qemu}): {words}"
        ) from error


async def _unpacked(vm: Vm, file: BinaryIO) -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reader:
        unpacking = asyncio.ensure_future(in_thread(partial(_unpack, file, into)))
        try:
            await load_state(await vm.monitor(), reader)
        except QmpError:
            if unpacking.done():
                unpacking.result()
            raise
        finally:
            unpacking.cancel()
            await asyncio.gather(unpacking, return_exceptions=True)


def _unpack(file: BinaryIO, into: int, tick: Tick) -> None:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(file) as parts:
            os.set_blocking(into, False)
            while part := parts.read(_PART):
                _push(into, part, tick)
    except (zstandard.ZstdError, BrokenPipeError):
        pass  # the sum tells, or QEMU does
    finally:
        os.close(into)


def _push(into: int, part: bytes, tick: Tick) -> None:
    left = memoryview(part)
    while left:
        tick()
        if select.select([], [into], [], _LOOK)[1]:
            left = left[os.write(into, left) :]
