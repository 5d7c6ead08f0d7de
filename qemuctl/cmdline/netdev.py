"""Network back ends: ``-netdev`` and ``netdev_add``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qemuctl.cmdline.qapi import JsonOption


@dataclass(frozen=True, kw_only=True)
class Netdev(JsonOption):
    """A back end of type ``type``."""

    OPTION: ClassVar = "-netdev"
    type: str
    id: str


@dataclass(frozen=True, kw_only=True)
class String:
    """QAPI's ``String``: how a list of strings is spelled in a netdev."""

    str: str


@dataclass(frozen=True, kw_only=True)
class UserNetdev(Netdev):
    """User networking; ``hostfwd`` as in ``tcp:127.0.0.1:8080-:80``."""

    type: str = "user"
    restrict: bool | None = None
    hostfwd: tuple[String, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TapNetdev(Netdev):
    """An existing tap interface, left as it is."""

    type: str = "tap"
    ifname: str
    script: str = "no"
    downscript: str = "no"


@dataclass(frozen=True, kw_only=True)
class UnixAddress:
    """A unix socket as a ``SocketAddress``."""

    type: str = "unix"
    path: Path


@dataclass(frozen=True, kw_only=True)
class StreamNetdev(Netdev):
    """A wire to another VM over a stream socket."""

    type: str = "stream"
    server: bool
    addr: UnixAddress
