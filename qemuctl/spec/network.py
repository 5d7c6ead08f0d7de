"""Network cards, what they are plugged into, and forwarded ports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from qemuctl.spec.base import Model
from qemuctl.spec.scalars import Text, Whole, check_ipv4, check_mac
from qemuctl.spec.unique import Id, check_unique

_FORWARD = re.compile(
    r"(?:(?:(?P<protocol>tcp|udp):)?(?:(?P<address>[0-9.]+):)?"
    r"(?P<host>[0-9]{0,5}):)?(?P<guest>[0-9]{1,5})"
)


class Forward(Model):
    """A port of the host that leads to a port of the guest (user network).

    `host_port` 0 lets the kernel choose a free one.
    """

    protocol: Literal["tcp", "udp"] = "tcp"
    address: Text = "127.0.0.1"
    host_port: Whole = Field(0, ge=0, le=65535)
    guest_port: Whole = Field(ge=1, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            return value
        match = _FORWARD.fullmatch(value)
        if match is None:
            raise ValueError(
                f"not a port forward: {value!r} "
                "(write 8080:80, 127.0.0.1:2222:22 or :80)"
            )
        return {
            "protocol": match["protocol"] or "tcp",
            "address": match["address"] or "127.0.0.1",
            "host_port": int(match["host"] or 0),
            "guest_port": int(match["guest"]),
        }

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        return check_ipv4(value)

    @property
    def notation(self) -> str:
        """What a user would write: ``8080:80``, ``udp:0.0.0.0:53:53``, ``:22``."""
        protocol = "" if self.protocol == "tcp" else f"{self.protocol}:"
        address = "" if self.address == "127.0.0.1" else f"{self.address}:"
        return f"{protocol}{address}{self.host_port or ''}:{self.guest_port}"


class Nic(Model):
    """One network card and what it is plugged into."""

    id: Id | None = Field(None, description="its name; default: nicN")
    type: Literal["user", "none", "tap", "socket"] = "user"
    model: Text = Field(
        "virtio", description="virtio, e1000, e1000e, rtl8139, or a QEMU device name"
    )
    mac: Text | None = None
    forward: tuple[Forward, ...] = ()
    restrict: bool = Field(False, description="user: the guest reaches nothing outside")
    ifname: Text | None = Field(None, description="tap: an existing interface")
    listen: Text | None = Field(None, description="socket: unix path to listen on")
    connect: Text | None = Field(None, description="socket: unix path to connect to")
    link: Literal["up", "down"] = Field("up", description="down: its cable is out")

    @field_validator("mac")
    @classmethod
    def _mac(cls, value: str | None) -> str | None:
        return None if value is None else check_mac(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type != "user" and (self.forward or self.restrict):
            raise ValueError(f"forward and restrict need type: user, not {self.type}")
        if (self.type == "tap") != (self.ifname is not None):
            raise ValueError("type: tap and ifname belong together")
        if self.type == "socket" and (self.listen is None) == (self.connect is None):
            raise ValueError("type: socket has either listen or connect")
        if self.type != "socket" and (self.listen or self.connect):
            raise ValueError("listen and connect need type: socket")
        return self


def nic_ids(nics: Iterable[Nic]) -> list[str]:
    """The ids of all cards of a VM: their own, or nicN. Raises ValueError as
    `disk_ids` does."""
    ids = [nic.id or f"nic{index}" for index, nic in enumerate(nics)]
    check_unique("two cards have the same id", ids)
    return ids
