"""From a plan to a QEMU that answers, and back to nothing when that fails.

QEMU comes up with its virtual CPUs stopped (``-S``), is known to answer, is
written down, and only then is its guest let run, by whoever asked for it.
Whatever goes wrong before that point, the owner's end of the shepherd's pipe
closes, and the shepherd ends QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from qemuctl import bounded, durable
from qemuctl.cmdline.boot import boot_indexes
from qemuctl.cmdline.ram import RamFile
from qemuctl.cmdline.shape import Shape, exact
from qemuctl.connection.monitors import state_of
from qemuctl.errors import (
    LaunchError,
    MonitorLost,
    NotFound,
    QemuctlError,
    StateError,
    WaitTimeout,
)
from qemuctl.hotplug.disks.throttle import set_all_limits
from qemuctl.hotplug.nic_state import cut_links, links_down, read_forwards
from qemuctl.image import store
from qemuctl.paths import VmPaths
from qemuctl.process import Child, Identity, read_exit, spawn, take, wait_gone
from qemuctl.qmp import Recorder, Session, eventlog
from qemuctl.qmp.commands import QomSet, Quit
from qemuctl.qmp.migration import MigrationFailed, load_state, set_capabilities
from qemuctl.registry.disks.resolve import Device
from qemuctl.registry.file_users import user_of
from qemuctl.registry.plan import Plan, Stages, prepare
from qemuctl.registry.records.migration_journal import check_here
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import Action, require
from qemuctl.spec import Spec, dump
from qemuctl.spec.arguments import options
from qemuctl.structs import Struct
from qemuctl.tail import tail
from qemuctl.vm.vm import Vm

# QEMU opens its sockets' far ends in a few hundredths of a second; a loaded
# machine may take long, and a stuck one must not take for ever.
GREETING_TIMEOUT = 60.0
_QUIT_PATIENCE = 5.0


class Origin(Struct):
    """What a machine is made from, if not anew.

    ``ram`` is the file of its memory; ``state`` that of its devices' state, None
    for a template in the making; ``template`` is what it is a fork of, and
    ``console`` the file of what that had said on its console. With ``shape`` it is
    like a machine of that shape, and waits for its state.
    """

    ram: RamFile | None = None
    shape: Shape | None = None
    state: Path | None = None
    template: str | None = None
    console: Path | None = None


async def bring_up(
    spec: Spec,
    paths: VmPaths,
    *,
    attached: bool,
    keep_open: Sequence[int] = (),
    boot: Device | None = None,
    progress: Stages | None = None,
    origin: Origin | None = None,
) -> tuple[Vm, Child]:
    """A QEMU that answers and is written down, its CPUs stopped.

    ``keep_open`` are descriptors that it inherits with the VM's lock. Raises as
    `launch` does; QEMU has ended then.
    """
    lock = await _take_lock(paths)
    try:
        plan, child = await _spawned(
            spec, paths, [lock, *keep_open], boot, progress, origin
        )
    finally:
        os.close(lock)
    session = None
    try:
        session = await _greeting(paths, child, plan)
        if origin is not None:
            await _take_over(session, child, plan, origin)
        if plan.usual is not None:
            await _boot_as_usual(session, plan)
        await set_all_limits(session, plan.spec)
        await cut_links(session, plan.spec)
        vm = await _written_down(plan, child, session, origin, attached=attached)
    except BaseException:
        child.disown()
        if session is not None:
            await asyncio.shield(session.close())
        await asyncio.shield(child.reaped())
        raise
    return vm, child


async def _take_lock(paths: VmPaths) -> int:
    try:
        lock = take(paths.lock)
    except FileNotFoundError as error:
        raise NotFound(paths.name) from error  # removed in this moment
    if lock is None:
        require(Action.START, await state_of(paths), paths.name)
        raise StateError(
            f"start {paths.name}", "starting", "another command is starting it"
        )
    return lock


async def _spawned(
    spec: Spec,
    paths: VmPaths,
    keep_open: Sequence[int],
    boot: Device | None,
    progress: Stages | None,
    origin: Origin | None,
) -> tuple[Plan, Child]:
    """A QEMU that has been started, in a folder that nothing stale is left in."""
    check_here(paths, Action.START)  # once more, now that nobody else can start it
    # First of all: while the lock is held, an old record would be believed.
    for stale in (
        paths.record, paths.exit, paths.journal, paths.plugged,
        # Of a run that has ended before it went anywhere, or that had come.
        paths.migration, paths.arriving,
    ):  # fmt: skip
        stale.unlink(missing_ok=True)
    paths.ballooned.unlink(missing_ok=True)
    durable.write(paths.started, dump(spec), durable=False)
    once = boot or (None if paths.booted.exists() else spec.boot.once)
    origin = origin or Origin()
    if origin.shape is not None:
        spec = exact(spec, origin.shape)
    with store.steady():
        plan = await prepare(
            spec, paths, once=once, progress=progress, ram=origin.ram,
            shape=origin.shape,
        )  # fmt: skip
    _turn(paths.serial_log, origin.console)
    # Ours, and whatever is in it is stale: we have the lock.
    shutil.rmtree(paths.run, ignore_errors=True)
    eventlog.prepare(paths.events_in, paths.events)
    child = await spawn(paths, plan.machine.listening, plan.argv, keep_open=keep_open)
    return plan, child


async def _take_over(
    session: Session, child: Child, plan: Plan, origin: Origin
) -> None:
    """Has a machine that is made from a template go on where that one stopped."""
    if origin.ram is None:
        return  # whoever has its state come says how
    await set_capabilities(session, "x-ignore-shared")
    if origin.state is None:
        return
    by_name = origin.state if "file" in plan.host.binary.transports else None
    try:
        async with asyncio.timeout(GREETING_TIMEOUT):
            with origin.state.open("rb") as file:
                await load_state(session, file, by_name=by_name)
    except TimeoutError as error:
        raise WaitTimeout(
            "QEMU to take the template's state", GREETING_TIMEOUT
        ) from error
    except (MonitorLost, MigrationFailed) as error:
        child.disown()
        await child.reaped()
        raise _launch_error(plan.paths, plan) from error


async def _boot_as_usual(session: Session, plan: Plan) -> None:
    """Puts the usual boot order in the place of this start's.

    The firmware has its list already (fw_cfg's ``bootorder``), which QEMU
    makes anew at each reset: so the guest's first reboot is as usual.
    """
    assert plan.usual is not None
    devices = set(boot_indexes(plan.spec)) | set(plan.usual)
    # An index is never had by two at once, so all are given back first.
    for device, index in [
        *((device, -1) for device in sorted(devices)),
        *sorted(plan.usual.items()),
    ]:
        path = f"/machine/peripheral/{device}"
        await session.execute(QomSet(path=path, property="bootindex", value=index))


def _turn(log: Path, begun: Path | None) -> None:
    """Starts a new log and keeps the one before: who waits for a line on the
    console must not find that of an earlier run.

    A fork's run began as its template's, in ``begun``: QEMU appends to it.
    """
    with contextlib.suppress(FileNotFoundError):
        log.replace(log.with_name(f"{log.name}.1"))
    log.touch(0o600)
    if begun is not None:
        with contextlib.suppress(FileNotFoundError):  # it had no console
            log.write_bytes(bounded.content(begun))


async def _greeting(paths: VmPaths, child: Child, plan: Plan) -> Session:
    """QEMU's greeting, or the reason why there will be none."""
    connecting = asyncio.create_task(
        Session.connect(
            paths.owner_socket,
            recorder=Recorder(paths.qmp_log),
            timeout=GREETING_TIMEOUT,
        )
    )
    ending = asyncio.create_task(child.reaped())
    greeted = None
    try:
        await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done() and connecting.exception() is None:
            child.greeted()
            greeted = connecting.result()
            return greeted
        # Without a greeting QEMU is ending, or it hangs and must be ended.
        if not ending.done() and isinstance(connecting.exception(), WaitTimeout):
            raise connecting.exception() or AssertionError
        child.disown()
        await ending
        raise _launch_error(paths, plan)
    finally:
        for task in (connecting, ending):
            task.cancel()
        late, _ = await asyncio.gather(connecting, ending, return_exceptions=True)
        if isinstance(late, Session) and greeted is None:
            await late.close()


_LOCKED = re.compile(r'Failed to get (shared )?"[a-z ]+" lock')
# What QEMU's words mean to somebody who did not write its code.
_MEANINGS = (
    (
        "Could not set up host forwarding rule",
        "a host port is taken, or below 1024: choose another, or :PORT for a free one",
    ),
    ("Could not access KVM", "KVM cannot be used here: accel: tcg works everywhere"),
    ("Cannot allocate memory", "the host has not this much memory: memory: less"),
)


def _launch_error(paths: VmPaths, plan: Plan) -> LaunchError:
    words = tail(paths.qemu_log, 40).strip()
    status = read_exit(paths.exit).status
    how = f"status {status}" if status is None or status >= 0 else f"signal {-status}"
    hint = next((hint for text, hint in _MEANINGS if text in words), None)
    if _LOCKED.search(words):  # in the moment between our look and QEMU's
        files = [Path(disk.path) for disk in plan.spec.disks if disk.path]
        others = filter(None, (user_of(file, but=paths.name) for file in files))
        hint = f"{next(others, 'another process')} is using this disk image"
    return LaunchError(
        f"QEMU did not start ({how}): {words or 'it gave no reason'}",
        hint=hint,
        argv=plan.argv(),
        returncode=status,
        stderr=words,
    )


async def _written_down(
    plan: Plan,
    child: Child,
    session: Session,
    origin: Origin | None,
    *,
    attached: bool,
) -> Vm:
    spec, host = plan.spec, plan.host
    record = Record(
        qemu=child.qemu,
        shepherd=child.shepherd,
        owner=Identity.of(os.getpid()) if attached else None,
        attached=attached,
        run=str(plan.paths.run),
        started_at=time.time(),
        argv=plan.argv(),
        accel=host.accel.kind,
        accel_reason=host.accel.reason,
        version=host.binary.version,
        machine=host.binary.machine(spec.machine).name,
        cpus=spec.cpu.count,
        memory=spec.memory.size,
        image=spec.image,
        forwards=await _forwards(spec, session),
        links_down=links_down(spec),
        template=origin.template if origin is not None else None,
        continued=origin is not None and origin.shape is not None,
    )
    record.write(plan.paths.record)
    return Vm(plan.paths, record, session)


async def _forwards(spec: Spec, session: Session) -> list[str]:
    """Port forwards as they are: QEMU took the free ports (`info usernet`)."""
    own = any(option.given("hostfwd") for option in options(spec.extra_args))
    if not own and not any(nic.forward for nic in spec.nics):
        return []
    return [forward.text for forward in await read_forwards(session)]


async def put_down(vm: Vm, child: Child) -> None:
    """Ends an attached VM: `quit`, so that disks of the user's are flushed,
    and the pipe's end for a QEMU that does not hear it."""
    try:
        with contextlib.suppress(QemuctlError, TimeoutError):
            if child.qemu.alive():
                async with asyncio.timeout(_QUIT_PATIENCE):
                    await vm.execute(Quit(), timeout=1.0)
                    await wait_gone(child.qemu)
    finally:
        child.disown()  # whatever came in between: from here on it dies
        await asyncio.shield(child.reaped())
        await vm.close()
