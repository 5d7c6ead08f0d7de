"""Block nodes: ``-blockdev`` and ``blockdev-add``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qemuctl.cmdline.qapi import JsonOption


@dataclass(frozen=True, kw_only=True)
class BlockCache:
    """Cache flags of one node; write-back belongs to the front end."""

    direct: bool
    no_flush: bool


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class FileNode(Blockdev):
    """A protocol node: ``file``, ``host_device`` or ``host_cdrom``."""

    driver: str = "file"
    filename: Path
    aio: str | None = None


@dataclass(frozen=True, kw_only=True)
class FormatNode(Blockdev):
    """A format node (``qcow2``, ``raw``) on the node called ``file``."""

    file: str
