"""Reaching a VM's monitors, and asking in which state it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from qemuctl.errors import QmpError, WaitTimeout
from qemuctl.paths import VmPaths
from qemuctl.process import at_work, held
from qemuctl.qmp import Recorder, Session
from qemuctl.qmp.commands import QueryStatus
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import State, from_run_state

# A QEMU that has not greeted after this many seconds counts as stuck.
STUCK_AFTER = 1.0
# Seconds that the usual monitor has alone: most commands let go of it sooner.
_HEAD_START = 0.3


async def state_of(
    paths: VmPaths, session: Session | None = None, *, patience: float = STUCK_AFTER
) -> State:
    """The state of a VM, whatever it is in; never takes much longer than
    ``patience`` seconds."""
    if not held(paths.lock):
        return State.OFF
    if at_work(paths.lock):
        return State.BUSY
    record = Record.read(paths.record)
    if record is None:
        return State.STARTING
    # Asked first: from another PID namespace its process is not seen.
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
    if not paths.tools_socket.exists():
        return State.UNREACHABLE
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
    """A session on the first monitor whose turn comes, in ``timeout`` seconds.

    The usual one has a head start; where that is busy for long, as during a
    migration, the next one is asked, too.
    """
    waiting: set[asyncio.Task[Session]] = set()
    end, rest = asyncio.get_running_loop().time() + timeout, [*paths]
    try:
        while True:
            if rest:
                left = end - asyncio.get_running_loop().time()
                work = Session.connect(rest.pop(0), recorder=recorder, timeout=left)
                waiting.add(asyncio.create_task(work))
            done, waiting = await asyncio.wait(
                waiting,
                timeout=_HEAD_START if rest else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            greeted = [task for task in done if task.exception() is None]
            if greeted:
                waiting |= {*greeted[1:]}
                return greeted[0].result()
            if done and not waiting and not rest:
                return done.pop().result()
    finally:
        await _given_up(waiting)


async def _given_up(waiting: set[asyncio.Task[Session]]) -> None:
    for task in waiting:
        task.cancel()
    for late in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(late, Session):
            await late.close()


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
