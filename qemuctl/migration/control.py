"""A migration that another process carries out: looked at, limited, called off."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from qemuctl.errors import QmpError, StateError, WaitTimeout
from qemuctl.image.claim import LOOK_EVERY
from qemuctl.migration.phases import Phase
from qemuctl.migration.recovery import recover
from qemuctl.migration.report import Progress, progress_of
from qemuctl.paths import VmPaths
from qemuctl.process import held
from qemuctl.qmp.commands import QueryStatus
from qemuctl.qmp.migration import MigrateSetParameters, QueryMigrate
from qemuctl.qmp.nbd import BlockJobSetSpeed, QueryBlockJobs
from qemuctl.registry.records.migration_journal import Leaving, attended, on_its_way
from qemuctl.registry.vms import find
from qemuctl.structs import Struct
from qemuctl.vm.attach import attach

# Seconds that its process has to undo what it has begun.
_PATIENCE = 60.0


class Status(Struct):
    """How far it is; ``state`` is QEMU's word for it, or what is known without."""

    destination: str
    name: str
    phase: str
    state: str
    attended: bool
    progress: Progress


def _leaving(name: str) -> tuple[VmPaths, Leaving]:
    paths = find(name)
    leaving = Leaving.read(paths)
    if leaving is None:
        raise StateError(f"ask for {name}", "here", "it is not being migrated")
    return paths, leaving


async def status(name: str) -> Status:
    """How far a VM's migration is (query-migrate, query-block-jobs). Raises StateError
    where there is none."""
    paths, leaving = _leaving(name)
    progress, state = Progress(phase=Phase(leaving.phase)), on_its_way(paths) or "over"
    if held(paths.lock):
        with contextlib.suppress(QmpError, WaitTimeout, StateError):
            async with await attach(name) as vm:
                info = await vm.execute(QueryMigrate())
                jobs = await vm.execute(QueryBlockJobs())
                state = info.status or (await vm.execute(QueryStatus())).status
                done, total = sum(j.offset for j in jobs), sum(j.len for j in jobs)
                progress = progress_of(Phase(leaving.phase), info, done, total)
    return Status(
        destination=leaving.destination,
        name=leaving.name,
        phase=leaving.phase,
        state=state,
        attended=attended(paths),
        progress=progress,
    )


async def set_limits(
    name: str, *, bandwidth: int | None = None, downtime: float | None = None
) -> None:
    """Other limits from here on: bytes a second, seconds (migrate-set-parameters,
    block-job-set-speed). Raises StateError where there is no migration."""
    _leaving(name)
    async with await attach(name) as vm:
        await vm.execute(
            MigrateSetParameters(
                max_bandwidth=bandwidth,
                max_postcopy_bandwidth=bandwidth,
                downtime_limit=None if downtime is None else round(downtime * 1000),
            )
        )
        if bandwidth is None:
            return
        jobs = await vm.execute(QueryBlockJobs())
        for job in jobs:
            await vm.execute(BlockJobSetSpeed(device=job.device, speed=bandwidth))


async def cancel(name: str) -> None:
    """Calls a migration off: the process that carries it out undoes it, or we do where
    that has gone. Raises StateError where there is none, or it is too late."""
    paths, leaving = _leaving(name)
    if attended(paths):
        if leaving.controller is not None:
            leaving.controller.signal(signal.SIGINT)
        try:
            async with asyncio.timeout(_PATIENCE):
                # The kernel tells nobody when a lock is free.
                while attended(paths):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_EVERY)
        except TimeoutError as error:
            raise WaitTimeout("the migration to be undone", _PATIENCE) from error
    if not paths.state.exists() or paths.moved.exists():
        raise StateError(
            f"call off the migration of {name}", "gone", "it had just come to its end"
        )
    if Leaving.read(paths) is not None and await recover(name):
        raise StateError(
            f"call off the migration of {name}", "gone", "it runs there already"
        )
