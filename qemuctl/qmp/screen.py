"""QMP commands of the screen and the keyboard, each typed once."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from qemuctl.qmp.commands import Command
from qemuctl.structs import Struct

Protocol = Literal["vnc", "spice"]


class Screendump(Command[dict[str, Any]]):
    """Writes what the first screen shows to a file, which QEMU opens itself."""

    NAME = "screendump"
    filename: str
    format: Literal["png", "ppm"] | None = None


class SendKey(Command[dict[str, Any]]):
    """Presses keys one after the other and releases them in reverse order, each
    ``hold_time`` milliseconds after the one before; answered at once."""

    NAME = "send-key"
    keys: list[dict[str, Any]]
    hold_time: int | None = None


class SetPassword(Command[dict[str, Any]]):
    """What a new viewer must know; those that are there stay."""

    NAME = "set_password"
    protocol: Protocol
    password: str = field(repr=False)


class ExpirePassword(Command[dict[str, Any]]):
    """When the password ends: ``now``, ``never``, or ``+SECONDS``."""

    NAME = "expire_password"
    protocol: Protocol
    time: str


class SpiceInfo(Struct):
    """query-spice: ``host`` is the path where there is neither port; ``auth`` is
    none for whoever comes."""

    enabled: bool
    host: str | None = None
    port: int | None = None
    auth: str | None = None


class QuerySpice(Command[SpiceInfo]):
    NAME = "query-spice"
    REPLY = SpiceInfo
