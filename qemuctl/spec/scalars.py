"""The plain values of a spec: text, whole numbers, sizes, names, addresses.

Each is a check that says in one short line what is wrong with a value.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from qemuctl.typed.marks import Before, Check, Limits, Schema, Written
from qemuctl.units import format_size, parse_size

NAME_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_PORT = re.compile(r"[0-9]{1,5}")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")


def check_name(name: str) -> str:
    """The name of a VM, if it can be one.

    It becomes a folder and part of a socket's path, so it is short and plain.
    Raises ValueError.
    """
    if len(name) > NAME_MAX:
        raise ValueError(f"name too long: {len(name)} characters, {NAME_MAX} at most")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"not a name: {name!r} (letters, digits, '.', '_' and '-', "
            "starting with a letter or digit)"
        )
    return name


def check_mac(value: str) -> str:
    """A MAC address of one card, in lower case with colons. Raises ValueError."""
    mac = value.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"not a MAC address: {value!r} (write 52:54:00:12:34:56)")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"a multicast MAC address: {value}")
    return mac


def check_ipv4(value: str) -> str:
    """A dotted IPv4 address: QEMU's user network listens on no other.

    Raises ValueError.
    """
    if not _IPV4.fullmatch(value) or any(int(part) > 255 for part in value.split(".")):
        raise ValueError(f"not an IPv4 address: {value!r} (write 127.0.0.1)")
    return value


def split_address(value: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:5901`` or ``[::1]:5901``. Raises ValueError."""
    host, _, port = value.rpartition(":")
    if not host or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise ValueError(f"not an address: {value!r} (write 127.0.0.1:5901)")
    return host, int(port)


def _no_nul(value: str) -> str:
    # execve(2) would cut the argument there; Python refuses with a traceback.
    if "\0" in value:
        raise ValueError("holds a NUL byte")
    return value


def _size(value: Any) -> int:
    # The longest size has 19 digits; longer text may overflow int() and float().
    if not isinstance(value, (int, str)) or len(str(value)[:65]) > 64:
        raise ValueError("not a size (write a number with K, M, G or T, such as 512M)")
    return parse_size(value)


Argument = Annotated[str, Check(_no_nul)]
"""Text as it goes to QEMU; may be empty."""

Text = Annotated[str, Limits(min_length=1), Check(_no_nul)]
"""Text that says something."""

Size = Annotated[
    int,
    Before(_size),
    Written(format_size),
    Schema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "examples": ["512M", "4GiB", "60G"]},
            ]
        }
    ),
]
"""Bytes, from ``512M`` or a number."""
