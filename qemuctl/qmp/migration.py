"""QMP's migration: a running machine's state as a stream, out and in.

Nothing here names a command of the host: streams are descriptors (SCM_RIGHTS)
or, where QEMU takes them, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qemuctl.errors import QemuctlError
from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import TypedEvent
from qemuctl.qmp.session import Session, Subscription

_NAME = "state"
_OVER = ("completed", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class MigrateSetCapabilities(Command[dict[str, Any]]):
    """Switches capabilities on or off; they stay so until said otherwise."""

    NAME = "migrate-set-capabilities"
    capabilities: list[dict[str, Any]]

    @classmethod
    def of(cls, **capabilities: bool) -> MigrateSetCapabilities:
        """By their names, with ``_`` for ``-``."""
        return cls(
            capabilities=[
                {"capability": name.replace("_", "-"), "state": state}
                for name, state in capabilities.items()
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Migrate(Command[dict[str, Any]]):
    NAME = "migrate"
    uri: str


@dataclass(frozen=True, kw_only=True)
class MigrateIncoming(Command[dict[str, Any]]):
    NAME = "migrate-incoming"
    uri: str


@dataclass(frozen=True, kw_only=True)
class Getfd(Command[dict[str, Any]]):
    """Gives the descriptor that was just sent a name."""

    NAME = "getfd"
    fdname: str


@dataclass(frozen=True, kw_only=True)
class MigrationInfo:
    """query-migrate: ``status`` is missing before the first one."""

    status: str | None = None
    error_desc: str | None = None


class QueryMigrate(Command[MigrationInfo]):
    NAME = "query-migrate"
    REPLY = MigrationInfo


@dataclass(frozen=True, kw_only=True)
class Migration(TypedEvent):
    """The migration has another status; sent with the capability ``events``."""

    NAME = "MIGRATION"
    status: str


class MigrationFailed(QemuctlError):
    """QEMU could not write or read a machine's state, in its own words."""


async def set_capabilities(session: Session, *, shared_ram: bool) -> None:
    """To be done on both sides alike. With ``shared_ram`` memory that is a shared
    file is left out of the stream."""
    await session.execute(
        MigrateSetCapabilities.of(events=True, x_ignore_shared=shared_ram)
    )


async def save_state(session: Session, path: Path, *, by_name: bool) -> None:
    """Writes the state of a machine that is stopped to a file.

    ``by_name``: QEMU opens it itself (``file:``, 8.2 and later); else it gets a
    descriptor, which later versions frown on. Raises MigrationFailed, and
    MonitorLost when QEMU ends.
    """
    with path.open("wb") as file, session.listen(Migration.NAME) as events:
        uri = f"file:{path}" if by_name else await _passed(session, file)
        await session.execute(Migrate(uri=uri))
        await _completed(session, events)


async def load_state(session: Session, path: Path, *, by_name: bool) -> None:
    """Gives a machine that waits for it (``-incoming defer``) its state from a file.

    Its CPUs stay stopped. Raises MonitorLost when QEMU ends, which is how it
    tells that it cannot read the state, and MigrationFailed where it goes on.
    """
    with path.open("rb") as file, session.listen(Migration.NAME) as events:
        uri = f"file:{path}" if by_name else await _passed(session, file)
        await session.execute(MigrateIncoming(uri=uri))
        await _completed(session, events)


async def _passed(session: Session, file: BinaryIO) -> str:
    """QEMU's address of a file of ours, of which it gets a descriptor."""
    await session.send_fd(file.fileno())
    await session.execute(Getfd(fdname=_NAME))
    return f"fd:{_NAME}"


async def _completed(session: Session, events: Subscription) -> None:
    while (status := Migration.of(await events.get()).status) not in _OVER:
        pass
    if status != "completed":
        info = await session.execute(QueryMigrate())
        raise MigrationFailed(
            f"the machine's state cannot be transferred: {info.error_desc or status}"
        )
