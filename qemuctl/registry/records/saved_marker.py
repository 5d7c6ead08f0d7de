"""Whether a VM that is off goes on from a saved state: cheap enough for `ls`.

The file is there until the guest runs, and of no use from then on. QEMU's own events
tell whether it has: a guest that goes on after the last migration to or from a file
has left that file behind, also when whoever wrote or read it was killed.
"""

from __future__ import annotations

from qemuctl.durable import remove
from qemuctl.paths import VmPaths
from qemuctl.qmp import eventlog

# Events of QEMU, by name and not by type: `ls` loads neither.
_RESUMED, _MIGRATION = "RESUME", "MIGRATION"


def is_saved(paths: VmPaths) -> bool:
    """Whether the next start of a VM that is off goes on from where it was saved."""
    return paths.saved.exists() and not _gone_on(paths)


def discard(paths: VmPaths) -> None:
    """Forgets the saved state of a VM; its next start is one from its disks, also
    after a power cut: they do not fit that state any more."""
    remove(paths.saved)


def _gone_on(paths: VmPaths) -> bool:
    ran = False
    for event in eventlog.past(paths.events):
        if event.name == _RESUMED:
            ran = True
        elif event.name == _MIGRATION and event.data.get("status") == "completed":
            ran = False
    return ran
