"""Network back ends: ``-netdev`` and ``netdev_add``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from qemuctl.cmdline.qapi import JsonOption
from qemuctl.structs import Struct


class Netdev(JsonOption):
    """A back end of type ``type``."""

    OPTION: ClassVar = "-netdev"
    type: str
    id: str


class String(Struct):
    """QAPI's ``String``: how a list of strings is spelled in a netdev."""

    str: str


class UserNetdev(Netdev):
    """User networking; ``hostfwd`` as in ``tcp:127.0.0.1:8080-:80``."""

    type: str = "user"
    restrict: bool | None = None
    hostfwd: tuple[String, ...] | None = None


class TapNetdev(Netdev):
    """An existing tap interface, left as it is."""

    type: str = "tap"
    ifname: str
    script: str = "no"
    downscript: str = "no"


class UnixAddress(Struct):
    """A unix socket as a ``SocketAddress``."""

    type: str = "unix"
    path: Path


class StreamNetdev(Netdev):
    """A wire to another VM over a stream socket."""

    type: str = "stream"
    server: bool
    addr: UnixAddress
