"""Starting a VM, all or nothing.

Two kinds of ownership, one way to start:

- *attached* (`launch`): a throwaway VM with a folder of its own that dies
  with its owner, whatever kills it, and leaves nothing;
- *detached* (`start`): a VM that was created, belongs to its user, and
  outlives the command that started it.

QEMU comes up with its virtual CPUs stopped (``-S``), is known to answer, is
written down, and only then lets the guest run. Whatever goes wrong before
that point, the owner's end of the shepherd's pipe closes, and the shepherd
ends QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from qemuctl.errors import (
    LaunchError,
    NotFound,
    QemuctlError,
    StateError,
    WaitTimeout,
)
from qemuctl.paths import VmPaths, private_dir, vms_dir
from qemuctl.process import (
    Child,
    Identity,
    bury,
    held,
    read_exit,
    spawn,
    take,
    wait_gone,
)
from qemuctl.qmp import Recorder, Session, eventlog
from qemuctl.qmp.commands import Cont, HumanMonitorCommand, Quit
from qemuctl.spec import Spec, dump
from qemuctl.tail import tail
from qemuctl.vm.definitions import THROWAWAY, find, load
from qemuctl.vm.plan import Plan, Progress, prepare
from qemuctl.vm.record import Record
from qemuctl.vm.states import Action, require
from qemuctl.vm.vm import Vm, state_of

# QEMU opens its sockets' far ends in a few hundredths of a second; a loaded
# machine may take long, and a stuck one must not take for ever.
GREETING_TIMEOUT = 60.0
_QUIT_PATIENCE = 5.0
# `info usernet`: protocol, descriptor, source address and port, destination.
_FORWARD = re.compile(r"(TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)")


@contextlib.asynccontextmanager
async def launch(
    spec: Spec,
    *,
    paused: bool = False,
    progress: Progress | None = None,
) -> AsyncIterator[Vm]:
    """Starts a throwaway VM and removes all of it at the end of the block.

    Its name is the spec's with a random ending, so that any number of them
    run side by side. It is running (or, with ``paused``, waits for
    ``vm.power.resume()``) when the block begins; whether its guest is ready
    is for ``vm.wait_ready()`` to tell. ``progress`` gets a line for each slow
    step, such as building an image.

    Raises SpecError, HostError, ImageError or LaunchError; UnexpectedExit
    does not come from here, but from whatever needs the VM after its end.
    """
    name = f"{spec.name}-{secrets.token_hex(3)}"
    paths = VmPaths.of(name)
    paths.check_sockets()
    private_dir(vms_dir())
    async with contextlib.AsyncExitStack() as stack:
        # The undertaker is there before the first file is.
        undertaker = bury(paths.state, paths.run)
        stack.push_async_callback(undertaker.done)
        paths.state.mkdir(mode=0o700)
        (paths.state / THROWAWAY).write_text(str(os.getpid()))
        paths.spec.write_text(dump(spec))
        vm, child = await _bring_up(
            spec, paths, [undertaker.pipe], progress, attached=True
        )
        stack.push_async_callback(_put_down, vm, child)
        if not paused:
            await vm.execute(Cont())
        yield vm


async def start(
    name: str, *, paused: bool = False, progress: Progress | None = None
) -> Vm | None:
    """Starts a VM that was created; None when it was on already.

    Of two starts at once one wins, and the other raises StateError. Raises
    NotFound, and as `launch` does; after an error the VM is off.
    """
    paths = find(name)
    if held(paths.lock):
        verdict = require(Action.START, await state_of(paths), name)
        if verdict is not None:
            return None
    spec = load(name)
    paths = VmPaths.of(name)
    vm, child = await _bring_up(spec, paths, [], progress, attached=False)
    try:
        if not paused:
            await vm.execute(Cont())
        child.detach()
    except BaseException:
        await asyncio.shield(_put_down(vm, child))
        raise
    return vm


async def _bring_up(
    spec: Spec,
    paths: VmPaths,
    keep_open: list[int],
    progress: Progress | None,
    *,
    attached: bool,
) -> tuple[Vm, Child]:
    """A QEMU that answers and is written down, its CPUs stopped."""
    try:
        lock = take(paths.lock)
    except FileNotFoundError as error:
        raise NotFound(paths.name) from error  # removed in this moment
    if lock is None:
        raise StateError(
            f"start {paths.name}", "starting", "another command is starting it"
        )
    try:
        # First of all: while the lock is held, an old record would be believed.
        for stale in (paths.record, paths.exit):
            stale.unlink(missing_ok=True)
        plan = await prepare(spec, paths, progress=progress)
        _turn(paths.serial_log)
        # Ours, and whatever is in it is stale: we have the lock.
        shutil.rmtree(paths.run, ignore_errors=True)
        eventlog.prepare(paths.events_in, paths.events)
        child = await spawn(
            paths, plan.machine.listening, plan.argv, keep_open=[lock, *keep_open]
        )
    finally:
        os.close(lock)
    try:
        session = await _greeting(paths, child, plan)
        vm = await _written_down(plan, child, session, attached=attached)
    except BaseException:
        child.disown()
        await asyncio.shield(child.reaped())
        raise
    return vm, child


def _turn(log: Path) -> None:
    """Starts a new log and keeps the one before: who waits for a line on the
    console must not find that of an earlier run."""
    with contextlib.suppress(FileNotFoundError):
        log.replace(log.with_name(f"{log.name}.1"))
    log.touch(0o600)


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
    try:
        await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done() and connecting.exception() is None:
            child.greeted()
            return connecting.result()
        # Without a greeting QEMU is ending, or it hangs and must be ended.
        if not ending.done() and isinstance(connecting.exception(), WaitTimeout):
            raise connecting.exception() or AssertionError
        child.disown()
        await ending
        raise _launch_error(paths, plan)
    finally:
        for task in (connecting, ending):
            task.cancel()
        await asyncio.gather(connecting, ending, return_exceptions=True)


# What QEMU's words mean to somebody who did not write its code.
_MEANINGS = (
    (
        "Could not set up host forwarding rule",
        "a host port is taken: choose another one, or :PORT for a free one",
    ),
    ('Failed to get "write" lock', "another VM is using this disk image"),
    ("Could not access KVM", "KVM cannot be used here: accel: tcg works everywhere"),
    ("Cannot allocate memory", "the host has not this much memory: memory: less"),
)


def _launch_error(paths: VmPaths, plan: Plan) -> LaunchError:
    words = tail(paths.qemu_log, 40).strip()
    status = read_exit(paths.exit).status
    how = f"status {status}" if status is None or status >= 0 else f"signal {-status}"
    return LaunchError(
        f"QEMU did not start ({how}): {words or 'it gave no reason'}",
        hint=next((hint for text, hint in _MEANINGS if text in words), None),
        argv=plan.argv(),
        returncode=status,
        stderr=words,
    )


async def _written_down(
    plan: Plan, child: Child, session: Session, *, attached: bool
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
    )
    record.write(plan.paths.record)
    return Vm(plan.paths, record, session)


async def _forwards(spec: Spec, session: Session) -> list[str]:
    """Port forwards as they are: QEMU took the free ports (`info usernet`)."""
    if not any(nic.forward for nic in spec.nics):
        return []
    text = await session.execute(HumanMonitorCommand(command_line="info usernet"))
    return [
        f"{address}:{port}->{guest}" + ("/udp" if protocol == "UDP" else "")
        for protocol, address, port, guest in _FORWARD.findall(text)
    ]


async def _put_down(vm: Vm, child: Child) -> None:
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
