"""Snapshot jobs of QEMU, seen through to their end.

A job of ours has an id that says so. What it came to is asked of QEMU, which keeps
it: a connection that is lost, or a command that was killed, does not lose it.
"""

from __future__ import annotations

import os

from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, MonitorLost
from qemuctl.qmp.jobs import (
    JobDismiss,
    JobInfo,
    JobStatusChange,
    QueryJobs,
    SnapshotDelete,
    SnapshotLoad,
    SnapshotSave,
)
from qemuctl.qmp.migration import set_capabilities

_OURS = "qemuctl-"
_CONCLUDED = "concluded"


async def save(vm: Connection, tag: str, *, vmstate: str, nodes: list[str]) -> None:
    """Saves RAM and disks (snapshot-save); the VM stands still meanwhile, and then
    goes on if it ran. Raises CommandError, UnexpectedExit."""
    await _carry_out(
        vm, SnapshotSave(job_id=_id("save"), tag=tag, vmstate=vmstate, devices=nodes)
    )


def new_load() -> str:
    """An id for a `load`, so that it can be written down before there is one."""
    return _id("load")


async def load(
    vm: Connection, tag: str, *, job: str, vmstate: str, nodes: list[str]
) -> None:
    """Goes back to what `save` has saved (snapshot-load); raises as it does."""
    await _carry_out(
        vm, SnapshotLoad(job_id=job, tag=tag, vmstate=vmstate, devices=nodes)
    )


async def delete(vm: Connection, tag: str, nodes: list[str]) -> None:
    """Deletes a snapshot where there is one (snapshot-delete); raises as `save`."""
    if nodes:
        await _carry_out(
            vm, SnapshotDelete(job_id=_id("delete"), tag=tag, devices=nodes)
        )


async def clear(vm: Connection) -> dict[str, JobInfo]:
    """Waits for jobs whose command has gone, and dismisses them; what they came to,
    by their ids."""
    ended = {}
    for job in await vm.execute(QueryJobs(), timeout=None):
        if job.id.startswith(_OURS):
            concluded = await vm.unless_ended(_concluded(vm, job.id))
            await vm.execute(JobDismiss(id=job.id))
            ended[job.id] = concluded or job
    return ended


def _id(verb: str) -> str:
    return f"{_OURS}{verb}-{os.urandom(4).hex()}"


async def _carry_out(
    vm: Connection, command: SnapshotSave | SnapshotLoad | SnapshotDelete
) -> None:
    job = await vm.unless_ended(_ended(vm, command))
    await vm.execute(JobDismiss(id=job.id))
    if job.error is not None:
        raise CommandError(command.NAME, "GenericError", job.error)


async def _ended(
    vm: Connection, command: SnapshotSave | SnapshotLoad | SnapshotDelete
) -> JobInfo:
    # QEMU 9 and later ends by SIGSEGV where multifd is still on from a restore.
    await set_capabilities(await vm.monitor())
    try:
        # Its reply comes when all is done, for QEMU answers nobody meanwhile.
        await vm.execute(command, timeout=None)
    except MonitorLost:
        if not vm.record.qemu.alive():
            raise
    job = await _concluded(vm, command.job_id)
    if job is None:
        raise MonitorLost(f"QEMU's monitor went away before it got {command.NAME}")
    return job


async def _concluded(vm: Connection, id: str) -> JobInfo | None:
    """A job once it has concluded; None when QEMU knows of none."""
    session = await vm.monitor()
    with session.listen(JobStatusChange.NAME) as events:
        while True:
            jobs = await session.execute(QueryJobs(), timeout=None)
            job = next((each for each in jobs if each.id == id), None)
            if job is None or job.status == _CONCLUDED:
                return job
            await events.get()
