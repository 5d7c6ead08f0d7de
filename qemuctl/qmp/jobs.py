"""QMP commands and events of snapshots, and of the jobs that make them.

A snapshot job does all of its work at once in QEMU's main loop: until it has, QEMU
answers nobody, and there is nothing to cancel. Its outcome is in `query-jobs` until
somebody dismisses it.
"""

from __future__ import annotations

from typing import Any

from qemuctl.qmp.commands import Command
from qemuctl.qmp.events import TypedEvent
from qemuctl.structs import Struct


class SnapshotSave(Command[dict[str, Any]]):
    """Keeps the VM's state in ``vmstate``, and the disks ``devices`` as they are.

    All of them are node names.
    """

    NAME = "snapshot-save"
    job_id: str
    tag: str
    vmstate: str
    devices: list[str]


class SnapshotLoad(Command[dict[str, Any]]):
    """Puts disks and the VM's state back. A VM that ran goes on; after an error it
    stays stopped, whatever it was."""

    NAME = "snapshot-load"
    job_id: str
    tag: str
    vmstate: str
    devices: list[str]


class SnapshotDelete(Command[dict[str, Any]]):
    """Deletes a snapshot from those ``devices`` that have it."""

    NAME = "snapshot-delete"
    job_id: str
    tag: str
    devices: list[str]


class JobInfo(Struct):
    """query-jobs: one job; ``error`` is there when it has failed."""

    id: str
    status: str
    error: str | None = None


class QueryJobs(Command[list[JobInfo]]):
    NAME = "query-jobs"
    REPLY = JobInfo


class JobDismiss(Command[dict[str, Any]]):
    """Forgets a job that has concluded."""

    NAME = "job-dismiss"
    id: str


class JobStatusChange(TypedEvent):
    NAME = "JOB_STATUS_CHANGE"
    id: str
    status: str


class Transaction(Command[dict[str, Any]]):
    """Carries out all ``actions`` at one moment, or none of them."""

    NAME = "transaction"
    actions: list[dict[str, Any]]


def snapshot_at_once(nodes: list[str], name: str) -> Transaction:
    """A snapshot of each of these disks, all at one moment, without RAM."""
    kind = "blockdev-snapshot-internal-sync"
    return Transaction(
        actions=[{"type": kind, "data": {"device": n, "name": name}} for n in nodes]
    )
