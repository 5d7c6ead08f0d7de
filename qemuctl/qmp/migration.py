"""QMP's migration: a running machine's state as a stream, out and in.

Nothing here names a command of the host: streams are descriptors (SCM_RIGHTS),
sockets or, where QEMU takes them, files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from qemuctl.errors import CommandError, QemuctlError, QmpError
from qemuctl.qmp.commands import Command, from_wire
from qemuctl.qmp.events import TypedEvent
from qemuctl.qmp.session import Session, Subscription
from qemuctl.structs import Struct

_NAME = "state"
OVER = ("completed", "failed", "cancelled")
# QEMU lets go of a cancelled migration's last write only when that ends.
_CANCEL_PATIENCE = 30.0


class Capability(Struct):
    """query-migrate-capabilities: one of them, on or off."""

    capability: str
    state: bool


class QueryMigrateCapabilities(Command[list[Capability]]):
    NAME = "query-migrate-capabilities"
    REPLY = Capability


class MigrateSetCapabilities(Command[dict[str, Any]]):
    """Switches capabilities on or off; they stay so until said otherwise."""

    NAME = "migrate-set-capabilities"
    capabilities: list[dict[str, Any]]


class MigrateSetParameters(Command[dict[str, Any]]):
    """``max_bandwidth`` and ``max_postcopy_bandwidth`` are bytes a second,
    ``downtime_limit`` is milliseconds; those that are None stay as they are."""

    NAME = "migrate-set-parameters"
    max_bandwidth: int | None = None
    max_postcopy_bandwidth: int | None = None
    downtime_limit: int | None = None
    multifd_channels: int | None = None
    multifd_compression: str | None = None
    tls_creds: Any = None
    tls_hostname: Any = None
    tls_authz: Any = None


class Migrate(Command[dict[str, Any]]):
    """``resume`` goes on with a postcopy migration that has lost its link."""

    NAME = "migrate"
    uri: str
    resume: bool | None = None


class MigrateIncoming(Command[dict[str, Any]]):
    NAME = "migrate-incoming"
    uri: str


class MigrateRecover(Command[dict[str, Any]]):
    """Has a destination wait for a source that resumes a postcopy migration."""

    NAME = "migrate-recover"
    uri: str


class MigratePause(Command[dict[str, Any]]):
    """Takes a postcopy migration's link away, for it to be resumed on another."""

    NAME = "migrate-pause"


class MigrateCancel(Command[dict[str, Any]]):
    NAME = "migrate_cancel"


class MigrateContinue(Command[dict[str, Any]]):
    """Goes on from a state in which the migration waits: ``pre-switchover``."""

    NAME = "migrate-continue"
    state: str


class MigrateStartPostcopy(Command[dict[str, Any]]):
    NAME = "migrate-start-postcopy"


class Getfd(Command[dict[str, Any]]):
    """Gives the descriptor that was just sent a name."""

    NAME = "getfd"
    fdname: str


class RamStats(Struct):
    """How far the RAM is: bytes, but for ``mbps`` (megabits a second),
    ``dirty_pages_rate`` (pages a second) and ``dirty_sync_count`` (rounds)."""

    transferred: int = 0
    remaining: int = 0
    total: int = 0
    mbps: float = 0.0
    page_size: int = 0
    dirty_pages_rate: int = 0
    dirty_sync_count: int = 0
    postcopy_requests: int = 0


class MigrationInfo(Struct):
    """query-migrate: ``status`` is missing before the first one; times are
    milliseconds."""

    status: str | None = None
    error_desc: str | None = None
    ram: RamStats | None = None
    total_time: int | None = None
    expected_downtime: int | None = None
    downtime: int | None = None
    setup_time: int | None = None
    cpu_throttle_percentage: int | None = None
    socket_address: list[dict[str, Any]] | None = None


class QueryMigrate(Command[MigrationInfo]):
    NAME = "query-migrate"
    REPLY = MigrationInfo

    def result(self, value: Any) -> MigrationInfo:
        """The typed reply, the numbers of the RAM included."""
        info = from_wire(MigrationInfo, value)
        if "ram" not in value:
            return info
        return replace(info, ram=from_wire(RamStats, value["ram"]))


class Migration(TypedEvent):
    """The migration has another status; sent with the capability ``events``."""

    NAME = "MIGRATION"
    status: str


class MigrationFailed(QemuctlError):
    """QEMU could not write or read a machine's state, in its own words."""


async def set_capabilities(session: Session, *wanted: str) -> None:
    """Switches these capabilities on, beside ``events``, and all others off: they
    outlive a migration that was cancelled. To be done on both sides alike.

    Raises MigrationFailed for one that this QEMU does not have.
    """
    on = {"events", *wanted}
    known = await session.execute(QueryMigrateCapabilities())
    missing = on - {each.capability for each in known}
    if missing:
        raise MigrationFailed(f"this QEMU lacks {', '.join(sorted(missing))}")
    other = [
        {"capability": each.capability, "state": each.capability in on}
        for each in known
        if each.state != (each.capability in on)
    ]
    if other:
        await session.execute(MigrateSetCapabilities(capabilities=other))


async def save_state(
    session: Session, file: BinaryIO, *, by_name: Path | None = None
) -> None:
    """Writes the state of a machine that is stopped to a file, from where that
    stands.

    QEMU opens it itself where it is given ``by_name`` (``file:``, 8.2 and later);
    else it gets a descriptor, which may be a pipe, and which later versions frown
    on for files. A call that is cut off cancels the migration. Raises
    MigrationFailed, and MonitorLost when QEMU ends.
    """
    with session.listen(Migration.NAME) as events:
        try:
            await _told(session, file, by_name, Migrate)
            await completed(session, events)
        except asyncio.CancelledError:
            await asyncio.shield(cancel(session))
            raise


async def load_state(
    session: Session, file: BinaryIO, *, by_name: Path | None = None
) -> None:
    """Gives a machine that waits for it (``-incoming defer``) its state from a file,
    from where that stands; ``by_name`` as for `save_state`.

    Its CPUs stay stopped. Raises MonitorLost when QEMU ends, which is how it
    tells that it cannot read the state, and MigrationFailed where it goes on.
    """
    with session.listen(Migration.NAME) as events:
        await _told(session, file, by_name, MigrateIncoming)
        await completed(session, events)


async def _told(
    session: Session,
    file: BinaryIO,
    by_name: Path | None,
    command: type[Migrate | MigrateIncoming],
) -> None:
    """Has QEMU begin with a file; QEMU carries commands out in the order in which they
    come, so that the descriptor needs no wait of its own."""
    if by_name is not None:
        await session.execute(command(uri=f"file:{by_name},offset={file.tell()}"))
        return
    await session.send_fd(file.fileno())
    await asyncio.gather(
        session.execute(Getfd(fdname=_NAME)),
        session.execute(command(uri=f"fd:{_NAME}")),
    )


async def reached(events: Subscription, wanted: Collection[str]) -> str:
    """The first of these statuses, or of those that end a migration, that comes."""
    while True:
        status = Migration.of(await events.get()).status
        if status in wanted or status in OVER:
            return status


async def completed(session: Session, events: Subscription) -> None:
    """Waits for a migration's end. Raises MigrationFailed with QEMU's words."""
    status = await reached(events, OVER)
    if status != "completed":
        raise await failure(session, status)


async def failure(session: Session, status: str) -> MigrationFailed:
    """The error for a migration that has ended otherwise than it should."""
    info = await session.execute(QueryMigrate())
    return MigrationFailed(
        f"the machine's state cannot be transferred: {info.error_desc or status}"
    )


async def cancel(session: Session, *, patience: float = _CANCEL_PATIENCE) -> str | None:
    """Calls a migration off and waits for its end (migrate_cancel); gives the status
    that it has then, None where there was none. Raises QmpError, TimeoutError."""
    with session.listen(Migration.NAME) as events:
        with contextlib.suppress(CommandError):
            await session.execute(MigrateCancel())
        async with asyncio.timeout(patience):
            while True:
                status = (await session.execute(QueryMigrate())).status
                if status is None or status == "none" or status in OVER:
                    return status
                if status.startswith("postcopy"):
                    raise QmpError("a postcopy migration cannot be called off")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await events.get()
