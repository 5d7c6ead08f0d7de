"""Copying the memory of a running guest, until the rest is small enough to stop it.

A guest that changes its memory faster than the link carries it is held back by QEMU
(auto-converge); where that does not help, the rest follows it (postcopy), or it is
stopped (paused_ok), or it stays here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from qemuctl.errors import QemuctlError
from qemuctl.migration.options import Options
from qemuctl.migration.tls import CREDS
from qemuctl.qmp import Session
from qemuctl.qmp.commands import Stop
from qemuctl.qmp.migration import (
    OVER,
    Migrate,
    MigrateSetParameters,
    MigrateStartPostcopy,
    Migration,
    MigrationInfo,
    QueryMigrate,
    failure,
    set_capabilities,
)
from qemuctl.qmp.session import Subscription
from qemuctl.units import format_rounded

# Seconds between looks: QEMU has no events for how far it is.
_LOOK = 0.1
SWITCHING = "pre-switchover"
POSTCOPY = "postcopy-active"
# QEMU's own default of max-cpu-throttle.
_MOST_THROTTLE = 99
# Rounds through the memory that did not make the rest smaller, and by how much less
# the next one must be to count.
_PATIENT_ROUNDS = 4
_LESS = 0.95
# As much as QEMU takes: the link is the limit.
_UNLIMITED = 1 << 40

Look = Callable[[MigrationInfo], Awaitable[None]]


@dataclass
class _Course:
    """Whether the rest gets smaller from round to round."""

    round: int = 0
    least: int = 0
    stale: int = 0

    def stuck(self, info: MigrationInfo, options: Options) -> bool:
        """Whether waiting any longer is of no use."""
        ram = info.ram
        if ram is None or ram.dirty_sync_count <= max(self.round, 1):
            return False
        first = self.round == 0
        self.round = ram.dirty_sync_count
        if first or ram.remaining < self.least * _LESS:
            self.least, self.stale = ram.remaining, 0
            return False
        self.stale += 1
        held = info.cpu_throttle_percentage or 0
        if options.auto_converge and held < _MOST_THROTTLE:
            return False
        return self.stale >= _PATIENT_ROUNDS


@dataclass
class Memory:
    """The memory of one migration; ``hostname`` is what the other side's certificate
    must say, ``stopped_at`` when the guest was stopped for want of another way, and
    ``postcopy`` that the rest follows.
    """

    session: Session
    options: Options
    pauses: bool
    hostname: str | None = None
    stopped_at: float | None = None
    postcopy: bool = False
    _course: _Course = field(default_factory=_Course)

    async def prepare(self) -> None:
        """Sets how it is to be done, how fast, and how long the guest may stand still;
        from here on the limits can be changed by others, too. Raises QmpError and
        MigrationFailed."""
        options = self.options
        wanted = [*options.capabilities]
        wanted += ["auto-converge"] if options.auto_converge else []
        wanted += ["pause-before-switchover"] if self.pauses else []
        await set_capabilities(self.session, *wanted)
        await self.session.execute(
            MigrateSetParameters(
                max_bandwidth=options.bandwidth or _UNLIMITED,
                max_postcopy_bandwidth=options.bandwidth or 0,
                downtime_limit=round(options.downtime * 1000),
            )
        )

    async def begin(self, there: str) -> None:
        """Begins it (migrate), to ``there``, QEMU's address of a stream. Raises
        QmpError."""
        options = self.options
        multifd = "multifd" in options.capabilities
        await self.session.execute(
            MigrateSetParameters(
                multifd_channels=options.multifd or 2 if multifd else None,
                multifd_compression=(options.compress or "none") if multifd else None,
                tls_creds=CREDS if self.hostname else "",
                tls_hostname=self.hostname or "",
            )
        )
        await self.session.execute(Migrate(uri=there))

    async def copied(self, events: Subscription, look: Look) -> str:
        """Waits until the guest stands still and only the rest is left, or all has
        gone; gives the status. Raises MigrationFailed with QEMU's words, and
        QemuctlError for a guest that is too busy."""
        ends = {"completed", SWITCHING, POSTCOPY}
        deadline = None
        if self.options.timeout is not None:
            deadline = time.monotonic() + self.options.timeout
        acted = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    status = Migration.of(await events.get()).status
                    if status in ends:
                        return status
                    if status in OVER:
                        raise await failure(self.session, status)
            info = await self.session.execute(QueryMigrate())
            await look(info)
            late = deadline is not None and time.monotonic() > deadline
            stuck = self._course.stuck(info, self.options)
            if not acted and info.status == "active" and (late or stuck):
                await self._force(info, late=late)
                acted = True

    def stood_still(self) -> float:
        """Seconds that the guest was stopped before QEMU would have, which QEMU does
        not count."""
        return time.monotonic() - self.stopped_at if self.stopped_at else 0.0

    async def _force(self, info: MigrationInfo, *, late: bool) -> None:
        """Has it come to an end, by what its user allows."""
        if self.options.postcopy:
            self.postcopy = True
            await self.session.execute(MigrateStartPostcopy())
        elif self.options.paused_ok:
            self.stopped_at = time.monotonic()
            await self.session.execute(Stop())
        else:
            raise self._too_busy(info, late=late)

    def _too_busy(self, info: MigrationInfo, *, late: bool) -> QemuctlError:
        ram = info.ram
        assert ram is not None
        changes = format_rounded(ram.dirty_pages_rate * ram.page_size)
        carries = format_rounded(round(ram.mbps * 1e6 / 8))
        reason = "the guest changes its memory faster than the link carries it"
        if late:
            reason = f"its memory was not copied in {self.options.timeout:g} s"
        return QemuctlError(
            f"{reason}: it changes {changes} a second, the link carries {carries}; "
            f"{format_rounded(ram.remaining)} is left",
            hint="--postcopy lets it go on there before all has come, --paused-ok lets "
            "it stand still; or more --bandwidth, or --downtime",
        )
