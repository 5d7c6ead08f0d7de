"""QMP commands and events of disks: size, limits, errors."""

from __future__ import annotations

from typing import Any

from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import TypedEvent
from qemuctl.structs import Struct


class BlockResize(Command[dict[str, Any]]):
    """Gives a node another size in bytes. QEMU shrinks a node without a word."""

    NAME = "block_resize"
    node_name: str
    size: int


class BlockSetIoThrottle(Command[dict[str, Any]]):
    """Limits of one front end, for each second; 0 is none. ``id`` is its `qdev`."""

    NAME = "block_set_io_throttle"
    id: str
    bps: int
    iops: int
    bps_rd: int = 0
    bps_wr: int = 0
    iops_rd: int = 0
    iops_wr: int = 0


class NamedNode(Struct):
    """query-named-block-nodes: one node; ``file`` is the name that QEMU has for
    what is below it."""

    file: str
    ro: bool
    node_name: str | None = None


class QueryNamedBlockNodes(Command[list[NamedNode]]):
    """All nodes; ``flat`` leaves out the images below each of them."""

    NAME = "query-named-block-nodes"
    REPLY = NamedNode
    flat: bool = True


class BlockIoError(TypedEvent):
    """A disk's request has failed; with ``action`` ``stop`` the VM waits for its
    cause to be mended. ``reason`` is the host's word for it, for people."""

    NAME = "BLOCK_IO_ERROR"
    device: str
    operation: str
    action: str
    reason: str
    node_name: str | None = None
    nospace: bool | None = None
