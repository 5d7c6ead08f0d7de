"""Starting a VM, all or nothing.

Two kinds of ownership, one way to start:

- *attached* (`launch`): a throwaway VM with a folder of its own that dies
  with its owner, whatever kills it, and leaves nothing;
- *detached* (`start`): a VM that was created, belongs to its user, and
  outlives the command that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from qemuctl.boot.bring_up import bring_up, put_down
from qemuctl.boot.from_saved_state import go_on
from qemuctl.boot.throwaway import begin
from qemuctl.connection.monitors import state_of
from qemuctl.errors import StateError
from qemuctl.image.whole import sweep
from qemuctl.paths import VmPaths
from qemuctl.process import held
from qemuctl.qmp.commands import Cont
from qemuctl.registry.disks.resolve import Device
from qemuctl.registry.hotplug_recovery import conclude_if_off
from qemuctl.registry.plan import Stages
from qemuctl.registry.records.migration_journal import check_here
from qemuctl.registry.records.moved_away import check_not_moved
from qemuctl.registry.records.saved_marker import discard, is_saved
from qemuctl.registry.saved_state import read_state
from qemuctl.registry.states import Action, State, require
from qemuctl.registry.vms import find, load
from qemuctl.spec import Spec
from qemuctl.vm.vm import Vm


@contextlib.asynccontextmanager
async def launch(
    spec: Spec,
    *,
    paused: bool = False,
    boot: Device | None = None,
    progress: Stages | None = None,
) -> AsyncIterator[Vm]:
    """Starts a throwaway VM and removes all of it at the end of the block.

    Where ``vm.kept`` is true by then, the VM lives on without an owner, and is
    removed when it ends. Its name is the spec's with a random ending, so that
    any number of them run side by side. It is running (or, with ``paused``, waits for
    ``vm.power.resume()``) when the block begins; whether its guest is ready
    is for ``vm.wait_ready()`` to tell. ``boot`` is the kind of device that is
    tried first until the guest reboots. ``progress`` gets a line for each slow
    step, such as building an image.

    Raises SpecError, HostError, ImageError or LaunchError; UnexpectedExit
    does not come from here, but from whatever needs the VM after its end.
    """
    name = f"{spec.name}-{os.urandom(3).hex()}"
    attached = await begin(spec, name, boot=boot, progress=progress)
    async with attached as vm:
        if not paused:
            await vm.execute(Cont())
        yield vm


async def start(
    name: str,
    *,
    paused: bool = False,
    fresh: bool = False,
    boot: Device | None = None,
    progress: Stages | None = None,
) -> Vm | None:
    """Starts a VM that was created; None when it was on already.

    One that was saved goes on from there, once (see `go_on`); ``fresh`` forgets that,
    as soon as QEMU is there. ``boot`` is the kind of device that is tried first this
    time, until the guest reboots. Of two starts at once one wins, and the other raises
    StateError. Raises NotFound, StateFileError for a saved state that does not fit,
    and as `launch` does; after an error the VM is off.
    """
    paths = find(name)
    if held(paths.lock):
        verdict = require(Action.START, await state_of(paths), name)
        if verdict is not None:
            return None
    conclude_if_off(paths)
    if paths.snapshotting.exists():
        # Its disks may be of two times, one here and one there.
        from qemuctl.snapshots.offline import settle

        await settle(name, Action.START, as_they_are=fresh)
    paths = VmPaths.of(name)
    check_here(paths, "start")
    if not fresh:
        check_not_moved(paths)
    sweep(paths.state)  # what a save that was killed has begun
    if is_saved(paths) and not fresh:
        _check_unchanged_boot(name, boot)
        return await go_on(
            read_state(paths.saved), paths, paused=paused, progress=progress
        )
    spec = load(name)
    vm, child = await bring_up(
        spec, paths, boot=boot, progress=progress, attached=False
    )
    try:
        discard(paths)
        paths.moved.unlink(missing_ok=True)
        if not paused:
            await vm.execute(Cont())
        child.detach()
        paths.booted.touch()
    except BaseException:
        await asyncio.shield(put_down(vm, child))
        raise
    return vm


def _check_unchanged_boot(name: str, boot: Device | None) -> None:
    if boot is not None:
        raise StateError(
            f"boot {name} from {boot}", State.OFF,
            "it goes on from where it was saved",
            hint=f"to forget that: qemuctl start {name} --fresh --boot {boot}",
        )  # fmt: skip
