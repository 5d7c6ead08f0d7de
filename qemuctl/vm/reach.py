"""Reaching a VM's monitors, and asking in which state it is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from qemuctl.errors import QmpError, WaitTimeout
from qemuctl.paths import VmPaths
from qemuctl.process import held
from qemuctl.qmp import Recorder, Session
from qemuctl.qmp.commands import QueryStatus
from qemuctl.vm.record import Record
from qemuctl.vm.states import State, from_run_state

# A QEMU that has not greeted after this many seconds counts as stuck.
STUCK_AFTER = 1.0


async def state_of(
    paths: VmPaths, session: Session | None = None, *, patience: float = STUCK_AFTER
) -> State:
    """The state of a VM, whatever it is in; never takes much longer than
    ``patience`` seconds."""
    if not held(paths.lock):
        return State.OFF
    if paths.busy.exists():
        return State.BUSY
    record = Record.read(paths.record)
    if record is None:
        return State.STARTING
    if not record.qemu.alive():
        return State.STOPPING if held(paths.lock) else State.OFF
    with contextlib.suppress(WaitTimeout, QmpError):
        every = monitors(paths, record)[::-1]
        async with _borrowed(every, session, patience) as monitor:
            info = await monitor.execute(QueryStatus(), timeout=patience)
            return from_run_state(info.status)
    if not held(paths.lock):
        return State.OFF
    return mute(paths) if record.qemu.alive() else State.STOPPING


def mute(paths: VmPaths) -> State:
    """The state of a VM whose QEMU lives and does not answer."""
    # Nor does it while a snapshot's RAM is written or read, of which it can tell
    # nobody; whoever made it do that has left a note.
    return State.SNAPSHOTTING if paths.snapshotting.exists() else State.UNRESPONSIVE


def monitors(paths: VmPaths, record: Record) -> list[Path]:
    """The monitors that anybody may use, the usual one first.

    The owner's own is free when there is no owner, so that one long command
    does not make a VM look stuck.
    """
    return [paths.tools_socket] + ([] if record.attached else [paths.owner_socket])


async def connect(
    paths: Sequence[Path], timeout: float, recorder: Recorder | None = None
) -> Session:
    """A session on the first monitor whose turn comes, in ``timeout`` seconds."""
    *others, last = paths
    for path in others:
        with contextlib.suppress(WaitTimeout):
            return await Session.connect(
                path, recorder=recorder, timeout=timeout / len(paths)
            )
    return await Session.connect(last, recorder=recorder, timeout=timeout / len(paths))


@contextlib.asynccontextmanager
async def _borrowed(
    monitors: Sequence[Path], session: Session | None, patience: float
) -> AsyncIterator[Session]:
    if session is not None and not session.lost:
        yield session
        return
    fresh = await connect(monitors, patience)
    try:
        yield fresh
    finally:
        await fresh.close()
