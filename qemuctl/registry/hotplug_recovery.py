"""What is left to do once a device is in, or has gone: its file, its place in the spec.

A VM that has ended has no devices: what its guest did not let go of is gone too,
so `conclude_all` ends what the journal of its last run still holds.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from qemuctl.errors import QemuctlError
from qemuctl.paths import VmPaths
from qemuctl.process import take
from qemuctl.registry.records.hotplug_journal import Change, Journal


def conclude(paths: VmPaths, change: Change, *, there: bool) -> None:
    """Ends a change of a device that is now ``there``, or is not; QEMU has no back
    ends of one that is not.

    Raises SpecError and OSError when the spec cannot lose what was removed; the
    change is then still in the journal.
    """
    if there:
        # Plugged in, only the note of it was lost. A spec that cannot have it
        # must not be in the way of all other changes.
        with contextlib.suppress(QemuctlError, OSError):
            _configure(paths, change)
    elif change.removal:
        _forget(paths, change)
    elif change.made is not None:
        _unlink(Path(change.made), paths)
    Journal(paths.journal).end(change.device)


def conclude_if_off(paths: VmPaths) -> None:
    """Ends the changes of a VM that is off. Raises as `conclude` does; does nothing
    when the VM is on, or another command has it."""
    if not paths.journal.exists():
        return
    # Who meets the lock must not take us for a QEMU, and kill us.
    lock = take(paths.lock, to_work=True)
    if lock is None:
        return
    try:
        conclude_all(paths)
    finally:
        os.close(lock)


def conclude_all(paths: VmPaths) -> None:
    """As `conclude_if_off`, for whoever has the VM's lock."""
    for change in Journal(paths.journal).changes():
        if change.entry is not None and paths.spec.exists():
            conclude(paths, change, there=_configured(paths, change))
        else:
            conclude(paths, change, there=False)


def _configured(paths: VmPaths, change: Change) -> bool:
    from qemuctl.registry.edit import ids
    from qemuctl.registry.vms import load

    return change.device in ids(load(paths.name), paths)


def _configure(paths: VmPaths, change: Change) -> None:
    from qemuctl.registry.edit import ids, reconfigure
    from qemuctl.spec import Disk, Nic, Spec

    part, entry = change.configured, change.entry
    if part is None or entry is None:
        return

    def edit(spec: Spec) -> Spec:
        if change.device in ids(spec, paths):
            return spec
        model = Disk if part == "disks" else Nic
        added = model.model_validate(entry)
        return spec.model_copy(update={part: (*getattr(spec, part), added)})

    reconfigure(paths.name, edit)


def _forget(paths: VmPaths, change: Change) -> None:
    from qemuctl.registry.edit import forget
    from qemuctl.registry.records.disk_ledger import disown

    if change.configured is not None:
        forget(paths.name, change.configured, change.device)
        if change.file is not None:
            disown(Path(change.file), paths)
    if change.delete and change.file is not None:
        _unlink(Path(change.file), paths)


def _unlink(path: Path, paths: VmPaths) -> None:
    """Removes a file of the VM's own, and none that is another's by now."""
    if path.parent == paths.disks:
        path.unlink(missing_ok=True)
