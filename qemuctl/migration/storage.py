"""Copying the disks of a running VM to the receiver (blockdev-mirror over NBD)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from qemuctl.errors import CommandError, QemuctlError, QmpError
from qemuctl.migration.offer import DiskOffer
from qemuctl.qmp import Session
from qemuctl.qmp.commands import BlockdevDel
from qemuctl.qmp.jobs import JobDismiss, JobInfo, JobStatusChange, QueryJobs
from qemuctl.qmp.nbd import (
    BlockdevMirror,
    BlockJobCancel,
    BlockJobSetSpeed,
    QueryBlockJobs,
)
from qemuctl.qmp.session import Subscription
from qemuctl.structs import Struct

# QEMU's names of nodes have 31 characters at most, an id of ours has 20.
_JOB = _NODE = "move-"
_READY, _OVER = "ready", ("concluded", "null")
# Seconds that the last writes may take, and a job that is called off.
_PATIENCE = 120.0
# Seconds without a byte after which the copying is given up.
_STALL = 120.0


def served_at(path: Path) -> dict[str, Any]:
    """A unix socket, as a block node says it."""
    return {"server": {"type": "unix", "path": str(path)}}


class Storage(Struct, kw_only=False):
    """The disks of one migration; ``there`` is where the exports are, as a block
    node says it."""

    session: Session
    disks: tuple[DiskOffer, ...]
    there: dict[str, Any]

    async def begin(self, bandwidth: int | None) -> None:
        """Begins to copy (blockdev-add, blockdev-mirror). Raises CommandError."""
        for disk in self.disks:
            await self.session.command("blockdev-add", self._target(disk.id))
            top = disk.backing_format is not None
            await self.session.execute(
                BlockdevMirror(
                    job_id=_job(disk.id), device=disk.id, target=_node(disk.id),
                    sync="top" if top else "full", speed=bandwidth,
                )
            )  # fmt: skip

    def _target(self, id_: str) -> dict[str, Any]:
        return {
            "driver": "nbd",
            "node-name": _node(id_),
            **self.there,
            "export": id_,
            "discard": "unmap",
            # What is zero here must take no room there.
            "detect-zeroes": "unmap",
        }

    async def ready(self) -> None:
        """Waits until both sides are alike, and are kept so. Raises QemuctlError with
        QEMU's words when a copy fails."""
        if not self.disks:
            return
        with self.session.listen(JobStatusChange.NAME) as events:
            while True:
                jobs = await self._jobs()
                self._check(jobs)
                if all(job.status == _READY for job in jobs.values()):
                    return
                await self._moving(events)

    async def _moving(self, events: Subscription) -> None:
        """Waits for an event. Raises QemuctlError while nothing is copied."""
        before = await self.progress()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STALL):
                    await events.get()
                    return
            now = await self.progress()
            if now == before:
                raise QemuctlError(
                    f"nothing has been copied of the disks for {_STALL:g} s: the other "
                    "side does not take it"
                )
            before = now

    async def _jobs(self) -> dict[str, JobInfo]:
        ours = {_job(disk.id): disk.id for disk in self.disks}
        jobs = await self.session.execute(QueryJobs())
        return {ours[job.id]: job for job in jobs if job.id in ours}

    def _check(self, jobs: dict[str, JobInfo]) -> None:
        for disk in self.disks:
            job = jobs.get(disk.id)
            if job is None or job.status in _OVER:
                words = (job and job.error) or "it has ended"
                raise QemuctlError(f"the disk {disk.id} cannot be copied: {words}")

    async def progress(self) -> tuple[int, int]:
        """Bytes done, and in all (query-block-jobs)."""
        ours = {_job(disk.id) for disk in self.disks}
        jobs = await self.session.execute(QueryBlockJobs()) if ours else []
        found = [job for job in jobs if job.device in ours]
        return sum(job.offset for job in found), sum(job.len for job in found)

    async def speed(self, bandwidth: int) -> None:
        """Bytes a second from here on, for each disk (block-job-set-speed)."""
        for disk in self.disks:
            with contextlib.suppress(CommandError):
                job = BlockJobSetSpeed(device=_job(disk.id), speed=bandwidth)
                await self.session.execute(job)

    async def finish(self) -> None:
        """Has both sides be alike for good: the guest stands still, so that there is
        nothing more to write (block-job-cancel without force). Raises QemuctlError
        where something was not written."""
        for disk in self.disks:
            await self.session.execute(
                BlockJobCancel(device=_job(disk.id), force=False)
            )
        async with asyncio.timeout(_PATIENCE):
            ended = await self._concluded()
        for id_, job in ended.items():
            if job.error is not None:
                raise QemuctlError(f"the disk {id_} was not copied: {job.error}")
        await self.clear()

    async def _concluded(self) -> dict[str, JobInfo]:
        with self.session.listen(JobStatusChange.NAME) as events:
            while True:
                jobs = await self._jobs()
                if all(job.status in _OVER for job in jobs.values()):
                    return jobs
                await events.get()

    async def clear(self) -> None:
        """Ends whatever is left of the copying, and lets go of the exports."""
        await clear(self.session)


async def clear(session: Session) -> None:
    """Ends all copying of a migration that is over, whoever has begun it. Raises
    QmpError when QEMU has gone."""
    jobs = [job for job in await session.execute(QueryJobs()) if _ours(job)]
    for job in jobs:
        with contextlib.suppress(CommandError):
            await session.execute(BlockJobCancel(device=job.id, force=True))
    with session.listen(JobStatusChange.NAME) as events:
        async with asyncio.timeout(_PATIENCE):
            while True:
                jobs = [job for job in await session.execute(QueryJobs()) if _ours(job)]
                if all(job.status in _OVER for job in jobs):
                    break
                await events.get()
    for job in jobs:
        with contextlib.suppress(CommandError):
            await session.execute(JobDismiss(id=job.id))
    for node in await session.command("query-named-block-nodes", {"flat": True}):
        name = str(node.get("node-name", ""))
        if name.startswith(_NODE) and node.get("drv") == "nbd":
            with contextlib.suppress(QmpError):
                await session.execute(BlockdevDel(node_name=name))


def _ours(job: JobInfo) -> bool:
    return job.id.startswith(_JOB)


def _job(id_: str) -> str:
    return f"{_JOB}{id_}"


def _node(id_: str) -> str:
    return f"{_NODE}{id_}"
