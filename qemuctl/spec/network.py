"""Network cards, what they are plugged into, and forwarded ports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from qemuctl.spec.base import Model
from qemuctl.spec.scalars import Text, check_ipv4, check_mac
from qemuctl.spec.unique import Id, check_unique
from qemuctl.typed.marks import Check, setting

_FORWARD = re.compile(
    r"(?:(?:(?P<protocol>tcp|udp):)?(?:(?P<address>[0-9.]+):)?"
    r"(?P<host>[0-9]{0,5}):)?(?P<guest>[0-9]{1,5})"
)


class Forward(Model):
    """A port of the host that leads to a port of the guest (user network).

    `host_port` 0 lets the kernel choose a free one.
    """

    protocol: Literal["tcp", "udp"] = "tcp"
    address: Annotated[Text, Check(check_ipv4)] = "127.0.0.1"
    host_port: int = setting(default=0, ge=0, le=65535)
    guest_port: int = setting(ge=1, le=65535)

    @classmethod
    def model_widened(cls, value: Any) -> Any:
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

    @property
    def notation(self) -> str:
        """What a user would write: ``8080:80``, ``udp:0.0.0.0:53:53``, ``:22``."""
        protocol = "" if self.protocol == "tcp" else f"{self.protocol}:"
        address = "" if self.address == "127.0.0.1" else f"{self.address}:"
        return f"{protocol}{address}{self.host_port or ''}:{self.guest_port}"


class Nic(Model, plain="type"):
    """One network card and what it is plugged into."""

    id: Id | None = setting(default=None, description="its name; default: nicN")
    type: Literal["user", "none", "tap", "socket"] = "user"
    model: Text = setting(
        default="virtio",
        description="virtio, e1000, e1000e, rtl8139, or a QEMU device name",
    )
    mac: Annotated[Text, Check(check_mac)] | None = None
    forward: tuple[Forward, ...] = ()
    restrict: bool = setting(
        default=False, description="user: the guest reaches nothing outside"
    )
    ifname: Text | None = setting(
        default=None, description="tap: an existing interface"
    )
    listen: Text | None = setting(
        default=None, description="socket: unix path to listen on"
    )
    connect: Text | None = setting(
        default=None, description="socket: unix path to connect to"
    )
    link: Literal["up", "down"] = setting(
        default="up", description="down: its cable is out"
    )

    def __post_init__(self) -> None:
        if self.type != "user" and (self.forward or self.restrict):
            raise ValueError(f"forward and restrict need type: user, not {self.type}")
        if (self.type == "tap") != (self.ifname is not None):
            raise ValueError("type: tap and ifname belong together")
        if self.type == "socket" and (self.listen is None) == (self.connect is None):
            raise ValueError("type: socket has either listen or connect")
        if self.type != "socket" and (self.listen or self.connect):
            raise ValueError("listen and connect need type: socket")


def nic_ids(nics: Iterable[Nic]) -> list[str]:
    """The ids of all cards of a VM: their own, or nicN. Raises ValueError as
    `disk_ids` does."""
    ids = [nic.id or f"nic{index}" for index, nic in enumerate(nics)]
    check_unique("two cards have the same id", ids)
    return ids
