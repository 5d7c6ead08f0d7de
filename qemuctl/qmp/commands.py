"""QMP commands that qemuctl sends, each typed once.

A class is one command: its fields are the arguments (``_`` stands for
``-``, None is left out), and `Reply` says what of the answer is kept. The
names are the schema's own; a test holds each of them against the schema of
the installed QEMU, so that a misspelt one cannot live.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar, cast

R = TypeVar("R")


def wire_name(name: str) -> str:
    """A Python field name as QMP spells it."""
    return name.rstrip("_").replace("_", "-")


def from_wire(reply: type[R], value: dict[str, Any]) -> R:
    """One typed reply from QEMU's object; members that we do not type are left."""
    known = {
        field.name: value[wire_name(field.name)]
        for field in fields(cast(Any, reply))
        if wire_name(field.name) in value
    }
    return reply(**known)


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """One command with its arguments; `R` is the type of its reply."""

    NAME: ClassVar[str]
    REPLY: ClassVar[type[Any] | None] = None

    def arguments(self) -> dict[str, Any]:
        """The arguments as QMP spells them."""
        values = {wire_name(f.name): getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def result(self, value: Any) -> R:
        """The typed reply of QEMU's return value."""
        if self.REPLY is None:
            return cast(R, value)
        if isinstance(value, list):
            return cast(R, [from_wire(self.REPLY, item) for item in value])
        return cast(R, from_wire(self.REPLY, value))


@dataclass(frozen=True, kw_only=True)
class StatusInfo:
    """query-status: QEMU's run state, such as ``running`` or ``prelaunch``."""

    status: str
    running: bool


@dataclass(frozen=True, kw_only=True)
class ChardevInfo:
    """query-chardev: whether the guest has opened its end of a port."""

    label: str
    filename: str
    frontend_open: bool


@dataclass(frozen=True, kw_only=True)
class CpuInfo:
    """query-cpus-fast: one virtual CPU and the host thread that runs it."""

    cpu_index: int
    thread_id: int


@dataclass(frozen=True, kw_only=True)
class BalloonInfo:
    """query-balloon: the guest's memory in bytes, less what the balloon holds."""

    actual: int


@dataclass(frozen=True, kw_only=True)
class VncInfo:
    """query-vnc: whether the server runs, and where."""

    enabled: bool
    host: str | None = None
    service: str | None = None


class QueryStatus(Command[StatusInfo]):
    NAME = "query-status"
    REPLY = StatusInfo


class QueryChardev(Command[list[ChardevInfo]]):
    NAME = "query-chardev"
    REPLY = ChardevInfo


class QueryCpusFast(Command[list[CpuInfo]]):
    NAME = "query-cpus-fast"
    REPLY = CpuInfo


class QueryBalloon(Command[BalloonInfo]):
    NAME = "query-balloon"
    REPLY = BalloonInfo


class QueryVnc(Command[VncInfo]):
    NAME = "query-vnc"
    REPLY = VncInfo


class Cont(Command[dict[str, Any]]):
    NAME = "cont"


class Stop(Command[dict[str, Any]]):
    NAME = "stop"


class SystemReset(Command[dict[str, Any]]):
    NAME = "system_reset"


class SystemPowerdown(Command[dict[str, Any]]):
    NAME = "system_powerdown"


class Quit(Command[dict[str, Any]]):
    NAME = "quit"


@dataclass(frozen=True, kw_only=True)
class HumanMonitorCommand(Command[str]):
    """A line for the human monitor; the reply is text, failures included."""

    NAME = "human-monitor-command"
    command_line: str
