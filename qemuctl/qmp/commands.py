"""QMP commands that qemuctl sends, each typed once.

A class is one command: its fields are the arguments (``_`` stands for
``-``, None is left out), and `Reply` says what of the answer is kept. The
names are the schema's own; a test holds each of them against the schema of
the installed QEMU, so that a misspelt one cannot live.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Generic, TypeVar, cast

from qemuctl.errors import QmpError
from qemuctl.structs import Struct

R = TypeVar("R")

_NO_SENSE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


# Older than the rule that a name has dashes.
_UNDERSCORED = {
    "tray_open",
    "rd_bytes",
    "wr_bytes",
    "rd_operations",
    "wr_operations",
    "flush_operations",
    "bps_rd",
    "bps_wr",
    "iops_rd",
    "iops_wr",
}


def wire_name(name: str) -> str:
    """A Python field name as QMP spells it."""
    return name if name in _UNDERSCORED else name.rstrip("_").replace("_", "-")


def from_wire(reply: type[R], value: dict[str, Any]) -> R:
    """One typed reply from QEMU's object; members that we do not type are left."""
    known = {
        field.name: value[wire_name(field.name)]
        for field in fields(cast(Any, reply))
        if wire_name(field.name) in value
    }
    return reply(**known)


class Command(Struct, Generic[R]):
    """One command with its arguments; `R` is the type of its reply."""

    NAME: ClassVar[str]
    REPLY: ClassVar[type[Any] | None] = None

    def arguments(self) -> dict[str, Any]:
        """The arguments as QMP spells them."""
        values = {wire_name(f.name): getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def reply(self, value: Any) -> R:
        """As `result`, of what need not be from QEMU. Raises QmpError."""
        try:
            return self.result(value)
        except _NO_SENSE as error:
            raise QmpError(f"QEMU's reply to {self.NAME} makes no sense") from error

    def result(self, value: Any) -> R:
        """The typed reply of QEMU's return value."""
        if self.REPLY is None:
            return cast(R, value)
        if isinstance(value, list):
            return cast(R, [from_wire(self.REPLY, item) for item in value])
        return cast(R, from_wire(self.REPLY, value))


class StatusInfo(Struct):
    """query-status: QEMU's run state, such as ``running`` or ``prelaunch``."""

    status: str
    running: bool


class ChardevInfo(Struct):
    """query-chardev: whether the guest has opened its end of a port."""

    label: str
    filename: str
    frontend_open: bool


class CpuInfo(Struct):
    """query-cpus-fast: one virtual CPU and the host thread that runs it."""

    cpu_index: int
    thread_id: int


class BalloonInfo(Struct):
    """query-balloon: the guest's memory in bytes, less what the balloon holds."""

    actual: int


class VncInfo(Struct):
    """query-vnc: whether the server runs, and where: ``family`` is unix, ipv4 or
    ipv6, ``service`` a path or port, ``auth`` is none for whoever comes."""

    enabled: bool
    family: str | None = None
    host: str | None = None
    service: str | None = None
    auth: str | None = None


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


class HumanMonitorCommand(Command[str]):
    """A line for the human monitor; the reply is text, failures included."""

    NAME = "human-monitor-command"
    command_line: str


class QomSet(Command[dict[str, Any]]):
    """Sets one property of an object, such as a device's boot index."""

    NAME = "qom-set"
    path: str
    property: str
    value: Any


class BlockdevOpenTray(Command[dict[str, Any]]):
    """Asks the guest to open a drive, or with ``force`` opens it."""

    NAME = "blockdev-open-tray"
    id: str
    force: bool | None = None


class BlockdevCloseTray(Command[dict[str, Any]]):
    NAME = "blockdev-close-tray"
    id: str


class BlockdevRemoveMedium(Command[dict[str, Any]]):
    NAME = "blockdev-remove-medium"
    id: str


class BlockdevInsertMedium(Command[dict[str, Any]]):
    NAME = "blockdev-insert-medium"
    id: str
    node_name: str


class BlockdevDel(Command[dict[str, Any]]):
    NAME = "blockdev-del"
    node_name: str


class BlockInfo(Struct):
    """query-block: one drive; ``qdev`` is the device's id or path, ``inserted``
    its medium, ``locked`` tells that the guest holds on to it, and ``io_status``
    is ``ok`` unless an error of it has stopped the VM."""

    device: str
    locked: bool
    qdev: str | None = None
    inserted: dict[str, Any] | None = None
    tray_open: bool | None = None
    io_status: str | None = None


class QueryBlock(Command[list[BlockInfo]]):
    NAME = "query-block"
    REPLY = BlockInfo
