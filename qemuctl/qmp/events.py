"""QMP events: the general shape, and the ones that qemuctl acts on."""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar, Self

from qemuctl.qmp.commands import from_wire
from qemuctl.structs import Struct


class Event(Struct, kw_only=False):
    """One event as QEMU sent it; ``at`` in seconds since the epoch."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    at: float = 0.0

    @classmethod
    def parse(cls, message: Any) -> Event | None:
        """The event in a QMP message; None when the message is not one."""
        if not isinstance(message, dict) or not isinstance(message.get("event"), str):
            return None
        data, stamp = message.get("data") or {}, message.get("timestamp") or {}
        try:
            at = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
            return cls(message["event"], dict(data), float(at))
        except (AttributeError, TypeError, ValueError, ArithmeticError):
            return None


class TypedEvent(Struct):
    """The base of events whose members are typed."""

    NAME: ClassVar[str]

    @classmethod
    def of(cls, event: Event) -> Self:
        return from_wire(cls, event.data)


class Shutdown(TypedEvent):
    """The VM has shut down; ``reason`` is a ShutdownCause such as guest-shutdown."""

    NAME = "SHUTDOWN"
    guest: bool
    reason: str


class Stopped(TypedEvent):
    NAME = "STOP"


class Resumed(TypedEvent):
    NAME = "RESUME"


class Reset(TypedEvent):
    NAME = "RESET"
    guest: bool
    reason: str


class VserportChange(TypedEvent):
    """The guest opened or closed a virtio-serial port."""

    NAME = "VSERPORT_CHANGE"
    id: str
    open: bool


class GuestPanicked(TypedEvent):
    NAME = "GUEST_PANICKED"
    action: str
