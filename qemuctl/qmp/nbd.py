"""QMP commands of copying disks while they are in use: NBD and mirror jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qemuctl.qmp.commands import Command
from qemuctl.structs import Struct


class NbdServerStart(Command[dict[str, Any]]):
    """Serves block nodes at an address."""

    NAME = "nbd-server-start"
    addr: Any
    tls_creds: str | None = None
    tls_authz: str | None = None

    @classmethod
    def on(cls, path: Path) -> NbdServerStart:
        """On a unix socket."""
        return cls(addr={"type": "unix", "data": {"path": str(path)}})


class BlockExportAdd(Command[dict[str, Any]]):
    """Serves one node, to be written to."""

    NAME = "block-export-add"
    type: str
    id: str
    node_name: str
    writable: bool

    @classmethod
    def of(cls, node: str) -> BlockExportAdd:
        """Over NBD, by the node's own name."""
        return cls(type="nbd", id=f"export-{node}", node_name=node, writable=True)


class NbdServerStop(Command[dict[str, Any]]):
    """Ends all exports, whoever is connected."""

    NAME = "nbd-server-stop"


class BlockdevMirror(Command[dict[str, Any]]):
    """Copies the node ``device`` to ``target`` and keeps that alike, until it is
    cancelled; ``speed`` is bytes a second."""

    NAME = "blockdev-mirror"
    job_id: str
    device: str
    target: str
    sync: str
    speed: int | None = None
    on_target_error: str = "report"
    auto_dismiss: bool = False
    auto_finalize: bool = True


class BlockJobCancel(Command[dict[str, Any]]):
    """Ends a job; without ``force`` a mirror that is ready ends with both alike."""

    NAME = "block-job-cancel"
    device: str
    force: bool


class BlockJobSetSpeed(Command[dict[str, Any]]):
    """Bytes a second; 0 for as many as can be."""

    NAME = "block-job-set-speed"
    device: str
    speed: int


class BlockJobInfo(Struct):
    """query-block-jobs: ``offset`` of ``len`` bytes are done."""

    device: str
    offset: int
    len: int
    ready: bool


class QueryBlockJobs(Command[list[BlockJobInfo]]):
    NAME = "query-block-jobs"
    REPLY = BlockJobInfo
