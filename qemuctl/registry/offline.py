"""A VM that is off, and that nobody can start meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from qemuctl.errors import NotFound, QemuctlError, StateError
from qemuctl.paths import VmPaths
from qemuctl.process import at_work, take
from qemuctl.registry.states import Action, State, require
from qemuctl.registry.vms import find


@contextlib.contextmanager
def locked(name: str, action: Action) -> Iterator[VmPaths]:
    """The VM while it is off and nobody can start it.

    Raises NotFound, and StateError when it is on.
    """
    paths = find(name)
    try:
        # Who meets the lock must not take us for a QEMU, and kill us.
        lock = take(paths.lock, to_work=True)
    except FileNotFoundError as error:  # removed in this moment
        raise NotFound(name) from error
    if lock is None:
        state = State.BUSY if at_work(paths.lock) else State.RUNNING
        require(action, state, name)
        raise StateError(f"{action} {name}", "on", "the VM is on")
    try:
        find(name)  # whoever had the lock before may have removed it
        _check_whole(paths, action)
        check_not_saved(paths, action)
        _conclude(paths, action)
        yield paths
    finally:
        os.close(lock)


# Those that end what was cut short, or need no disks.
_ANYWAY = (
    Action.REMOVE, Action.START, Action.SNAPSHOT, Action.REVERT, Action.FORGET,
)  # fmt: skip


def _check_whole(paths: VmPaths, action: Action) -> None:
    """Raises StateError where a killed command may have left disks of two times."""
    if paths.snapshotting.exists() and action not in _ANYWAY:
        raise StateError(
            f"{action} {paths.name}", State.OFF,
            "a command that was to do with its snapshots was cut short",
            hint=f"what it has begun is ended by: qemuctl snapshot ls {paths.name}",
        )  # fmt: skip


# Those that leave the disks as they are.
_SAVED_TOO = (Action.REMOVE, Action.RENAME, Action.START)


def check_not_saved(paths: VmPaths, action: Action) -> None:
    """Raises StateError where a saved guest has not written all to the disks that are
    to be read, or would find others than it knows."""
    from qemuctl.registry.records.saved_marker import is_saved

    name = paths.name
    if action not in _SAVED_TOO and is_saved(paths):
        raise StateError(
            f"{action} {name}", State.OFF, "its guest was saved, to go on from there",
            hint=f"first let it: qemuctl start {name}; or forget its state: "
            f"qemuctl start {name} --fresh",
        )  # fmt: skip


def _conclude(paths: VmPaths, action: Action) -> None:
    """Does what the VM's last run has left undone, before it gets another name or
    lends its disks."""
    from qemuctl.registry.hotplug_recovery import conclude_all

    try:
        conclude_all(paths)
    except (QemuctlError, OSError):
        if action is not Action.REMOVE:  # which all of it goes with
            raise
