"""What the event file of a VM tells of snapshots that were loaded."""

from __future__ import annotations

from pathlib import Path

from qemuctl.qmp import eventlog
from qemuctl.qmp.events import Resumed
from qemuctl.qmp.jobs import JobStatusChange
from qemuctl.structs import Struct

# How the ids of our loads begin (see `snapshots.jobs`).
_LOAD = "qemuctl-load-"
_RUNNING, _ABORTING = "running", "aborting"


class PastLoad(Struct):
    """A load as events tell of it: whether it ``began`` and ``failed``, and whether
    the guest ``ran`` after it had begun, so that disks may hold newer things."""

    began: bool = False
    failed: bool = False
    ran: bool = False


def past_load(events: Path, id: str | None) -> PastLoad:
    """What has become of one load in the VM's last run (JOB_STATUS_CHANGE, RESUME)."""
    began = failed = ran = False
    for event in eventlog.past(events):
        if event.name == JobStatusChange.NAME and event.data.get("id") == id:
            began = began or event.data.get("status") == _RUNNING
            failed = failed or event.data.get("status") == _ABORTING
        # A guest that goes on where the snapshot was does so before the job ends.
        ran = ran or (began and event.name == Resumed.NAME)
    return PastLoad(began=began, failed=failed, ran=ran)


def loaded(events: Path) -> bool:
    """Whether this run of a VM has loaded a snapshot, as its events tell."""
    return any(
        event.name == JobStatusChange.NAME
        and str(event.data.get("id")).startswith(_LOAD)
        for event in eventlog.past(events)
    )
