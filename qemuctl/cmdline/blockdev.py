"""Block nodes: ``-blockdev`` and ``blockdev-add``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from qemuctl.cmdline.qapi import JsonOption
from qemuctl.structs import Struct


class BlockCache(Struct):
    """Cache flags of one node; write-back belongs to the front end."""

    direct: bool
    no_flush: bool


class Blockdev(JsonOption):
    """What every node has.

    Each node carries its own flags: a node that is named in another one does
    not inherit them.
    """

    OPTION: ClassVar = "-blockdev"
    driver: str
    node_name: str
    read_only: bool | None = None
    cache: BlockCache | None = None
    discard: str | None = None


class FileNode(Blockdev):
    """A protocol node: ``file``, ``host_device`` or ``host_cdrom``."""

    driver: str = "file"
    filename: Path
    aio: str | None = None


class FormatNode(Blockdev):
    """A format node (``qcow2``, ``raw``) on the node called ``file``."""

    file: str
