"""What must hold before a snapshot is made, loaded or removed, on or off."""

from __future__ import annotations

from collections.abc import Sequence

from qemuctl.errors import StateError, UsageError
from qemuctl.registry.states import Action
from qemuctl.snapshots.disks import Carrier, check_can_hold
from qemuctl.snapshots.records import Entry, Records, check_snapshot_name
from qemuctl.snapshots.tree import missing_on

_LONGEST = 1000


def one_line(description: str) -> str:
    """A description that fits into a table. Raises UsageError for a long one."""
    text = " ".join(description.split())
    if len(text) > _LONGEST:
        raise UsageError(
            f"description too long: {len(text)} characters, {_LONGEST} at most"
        )
    return text


def check_new(
    vm: str, name: str, state: str, records: Records, disks: Sequence[Carrier]
) -> None:
    """Raises UsageError for a name that cannot be, StateError for one that is in use
    or for disks that hold no snapshots."""
    check_snapshot_name(name)
    if name in records.entries or any(name in disk.tags for disk in disks):
        raise StateError(
            f"snapshot {vm}", state, f"there is a snapshot of this name: {name}",
            hint=f"choose another name, or: qemuctl snapshot rm {vm} {name}",
        )  # fmt: skip
    check_can_hold(vm, state, disks)


def to_revert(
    vm: str,
    name: str,
    state: str,
    records: Records,
    disks: Sequence[Carrier],
    *,
    fork_of: str | None = None,
) -> Entry:
    """The entry to go back to. Raises StateError when it is not there as a whole, the
    VM writes to other disks now, or was a fork then and is none any more:
    ``fork_of`` is its template now."""
    action = f"revert {vm}"
    check_known(vm, name, Action.REVERT, state, records, disks)
    entry = records.entries.get(name)
    if entry is None:
        raise StateError(
            action, state, f"{name} was not made here, so what it needs is not known",
            hint="its disks, while the VM is off: qemuctl image snapshot apply",
        )  # fmt: skip
    missing = missing_on(entry, disks)
    if missing is not None:
        raise StateError(action, state, f"{name} is not whole: {missing}")
    later = [disk.id for disk in disks if disk.id not in entry.disks]
    if later:
        raise StateError(
            action, state, f"{name} knows nothing of {', '.join(later)}",
            hint=f"first: qemuctl disk rm {vm} {later[0]}",
        )  # fmt: skip
    if entry.has_ram and entry.fork_of is not None and entry.fork_of != fork_of:
        raise StateError(
            action, state, f"{name} has the RAM of a fork of {entry.fork_of}, which "
            "fits only until the fork is stopped, and it has been",
            hint="its disks, while the VM is off: qemuctl image snapshot apply",
        )  # fmt: skip
    return entry


def check_known(
    vm: str,
    name: str,
    action: Action,
    state: str,
    records: Records,
    disks: Sequence[Carrier],
) -> None:
    """Raises StateError when there is no snapshot of this name, whole or not."""
    tags = {tag for disk in disks for tag in disk.tags}
    if name not in records.entries and name not in tags:
        known = ", ".join(records.entries) or "none"
        raise StateError(
            f"{action} {vm}", state, f"there is no snapshot {name}",
            hint=f"there are: {known}",
        )  # fmt: skip
