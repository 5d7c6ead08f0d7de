"""A machine that was saved goes on: at its VM's next start, or out of any file.

The VM's own file is there until the guest runs. What cannot be loaded is refused with
the reason, and is still there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from qemuctl.boot.bring_up import Origin, bring_up, put_down
from qemuctl.errors import CommandError, MonitorLost, StateFileError, WaitTimeout
from qemuctl.host.discovery import find_qemu, probe
from qemuctl.hotplug.guest_ready import carried_out
from qemuctl.paths import VmPaths
from qemuctl.power.guest_clock import set_clock
from qemuctl.power.resume_event import let_run
from qemuctl.process import Child
from qemuctl.qmp.migration import MigrationFailed, load_state
from qemuctl.registry.plan import Stages
from qemuctl.registry.records.saved_marker import discard
from qemuctl.registry.saved_state import About, StateFile, prepare_stream
from qemuctl.snapshots.topology import differences
from qemuctl.spec import Spec
from qemuctl.tail import tail
from qemuctl.thread import beside, in_thread
from qemuctl.vm.vm import Vm
from qemuctl.zstd_pipe import unpacked

# Seconds for QEMU to read what is there; a slow disk may take its time.
_PATIENCE = 600.0


async def go_on(
    state: StateFile,
    paths: VmPaths,
    *,
    paused: bool = False,
    verified: bool = False,
    progress: Stages | None = None,
) -> Vm:
    """Starts a VM with the state in a file (migrate-incoming), its guest running
    unless it was saved paused, or is to be ``paused``. The checksum of the file's head
    is right, and it may say what QEMU opens (`read_state`, `check_state`). That of its
    stream, unless it is ``verified``, is computed while QEMU starts and reads it: its
    guest does not run before.

    The clock of a guest that runs is set by its agent; `Vm.close` waits for that, and
    `Vm.clock` tells. Raises StateFileError with the reason where the state does not
    fit, and as a start does; the VM is off then, and the file there.
    """
    about = state.about
    check_disks(state, paths.state)
    spec = about.ran(paths.state).model_copy(update={"name": paths.name})
    _check_machine(spec, about)
    work = (lambda _: None) if verified else state.verify
    async with beside(in_thread(work)) as verifying:
        vm, child = await bring_up(
            spec, paths, attached=False, progress=progress,
            origin=Origin(shape=about.shape),
        )  # fmt: skip
        try:
            await _taken_in(vm, child, state, verifying)
            if about.ballooned is not None:
                paths.ballooned.write_text(f"{about.ballooned}\n")
            paths.booted.touch()
            child.detach()
        except BaseException:
            await asyncio.shield(put_down(vm, child))
            raise
    if not paused and not about.paused:
        await carried_out(_resumed(vm, child, state))
    return vm


async def _taken_in(
    vm: Vm, child: Child, state: StateFile, verifying: asyncio.Future[None]
) -> None:
    """Has QEMU read the state while that is looked at. Its guest takes no step yet, so
    that what is found may come late; it is told before what QEMU says of it."""
    async with beside(_load(vm, child, state)) as loading:
        await asyncio.gather(_check_devices(vm, state), verifying)
        await loading


async def _resumed(vm: Vm, child: Child, state: StateFile) -> None:
    """Lets the guest run; from then on it is not what is in the file any more."""
    try:
        await let_run(vm)
    except CommandError:  # it has not run
        await put_down(vm, child)
        raise
    if state.path == vm.paths.saved:
        # The kernel frees what the file has in memory when the last one closes it,
        # which takes tens of milliseconds.
        last = state.open()
        discard(vm.paths)
        asyncio.get_running_loop().run_in_executor(None, last.close)
    vm.clock = asyncio.create_task(set_clock(vm))


def check_disks(state: StateFile, folder: Path) -> None:
    """Raises StateFileError where a disk is not as it was, for a VM in this folder."""
    problems = state.about.problems(folder)
    if problems:
        name = folder.name
        raise StateFileError(
            f"the saved state does not fit any more: {'; '.join(problems)}",
            hint="it needs the disks as they were; to start the VM from what they are "
            f"now, and forget its state: qemuctl start {name} --fresh",
        )


def _check_machine(spec: Spec, about: About) -> None:
    binary = probe(find_qemu(spec))
    if about.shape.machine not in binary.machines:
        raise StateFileError(
            f"QEMU {binary.version} cannot go on with the state of a QEMU "
            f"{about.qemu}: it has no machine {about.shape.machine}",
            hint="the VM's spec may name another binary: qemu: /path/to/it",
        )


async def _check_devices(vm: Vm, state: StateFile) -> None:
    """Raises StateFileError unless QEMU has made the same devices.

    One that is new gets no state, and its guest knows nothing of it; one that is
    missing makes the load fail in its middle. Processors were placed one by one.
    """
    then, now = _devices(state.about.devices), _devices(await vm.bus.devices())
    if found := differences(then, now):
        raise StateFileError(
            f"the machine would not be the one that was saved: {state.path}: "
            f"{'; '.join(found)}"
        )


def _devices(every: dict[str, str]) -> dict[str, str]:
    return {id_: driver for id_, driver in every.items() if not driver.endswith("-cpu")}


async def _load(vm: Vm, child: Child, state: StateFile) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            await _read(vm, state)
    except TimeoutError as error:
        raise WaitTimeout("QEMU to read the saved state", _PATIENCE) from error
    except (MonitorLost, MigrationFailed) as error:
        if isinstance(error, MonitorLost):  # it says why, and ends
            child.disown()
            await child.reaped()
        words = tail(vm.paths.qemu_log, 5).strip() or error.message
        raise StateFileError(
            f"QEMU {vm.record.version} cannot read the saved state (of "
            f"{state.about.qemu}): {words}"
        ) from error


async def _read(vm: Vm, state: StateFile) -> None:
    session = await vm.monitor()
    await prepare_stream(session, mapped=state.about.mapped)
    with state.open() as file:
        if state.about.compression is None:
            binary = probe(Path(vm.record.argv[0]))
            by_name = state.path if "file" in binary.transports else None
            await load_state(session, file, by_name=by_name)
            return
        async with unpacked(file) as pipe:
            await load_state(session, pipe)
