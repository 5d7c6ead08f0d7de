"""Removing a VM, and what crashes have left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from itertools import chain, count
from pathlib import Path

from qemuctl import durable
from qemuctl.errors import StateError
from qemuctl.paths import VmPaths, kept_dir, private_dir, run_home, vms_dir
from qemuctl.process import held
from qemuctl.process.working import all_idle, idle, working
from qemuctl.registry.offline import locked
from qemuctl.registry.records.owner import THROWAWAY, disowned
from qemuctl.registry.records.run_folders import clear_run
from qemuctl.registry.states import Action, State
from qemuctl.registry.vms import EDITING


def remove(name: str, *, keep_disks: bool = False) -> Path | None:
    """Removes a VM that is off, and all that was made for it.

    With ``keep_disks`` the disks that it has are moved to the folder that is
    returned. Raises NotFound, and StateError when it is on, or when another
    VM's disks are made from its own.
    """
    with locked(name, Action.REMOVE) as paths:
        return remove_locked(paths, keep_disks=keep_disks)


def remove_locked(paths: VmPaths, *, keep_disks: bool = False) -> Path | None:
    """As `remove`, for whoever has the VM's lock."""
    refuse_needed(paths, Action.REMOVE)
    (paths.state / _KEEP).unlink(missing_ok=True)
    if keep_disks and paths.disks.exists():
        (paths.state / _KEEP).touch()
        durable.sync(paths.state)
    # Out of sight first: a removal that is cut short leaves no half VM.
    doomed = vms_dir() / f".removed-{paths.name}-{os.urandom(4).hex()}"
    with working(paths.state):  # `gc` leaves it to us
        durable.move(paths.state, doomed)
        shutil.rmtree(paths.run, ignore_errors=True)
        return _clear(doomed)


def clear(path: Path) -> Path | None:
    """Removes what `leftovers` found, unless somebody is at work there by now.

    Disks of a VM that were to be kept are moved to the folder that is returned.
    """
    if path.parent == run_home():
        clear_run(VmPaths.of(path.name))
        return None
    if path.is_file():
        path.unlink(missing_ok=True)
        return None
    with idle(path) as free, disowned(path) as abandoned:
        on = held(VmPaths(path, path).lock)
        return _clear(path) if free and abandoned and not on else None


def _clear(path: Path) -> Path | None:
    kept = None
    if (path / _KEEP).exists():
        kept = _keep(path)
    shutil.rmtree(path, ignore_errors=True)
    return kept


def refuse_needed(paths: VmPaths, action: Action) -> None:
    """Raises StateError where disks of other VMs are made from its own."""
    from qemuctl.registry.file_users import needing

    if not paths.disks.exists():
        return
    needed = needing(paths.state)
    if needed:
        others = ", ".join(needed)
        raise StateError(
            f"{action} {paths.name}", State.OFF,
            f"disks of other VMs are made from its own: {others}",
            hint="first remove these, or give them disks of their own: "
            "qemuctl image rebase DISK --flatten",
        )  # fmt: skip


def _keep(doomed: Path) -> Path | None:
    """Moves the disks of a VM that is being removed to where no VM owns them."""
    disks = VmPaths(doomed, doomed).disks
    if not disks.exists():
        return None
    folder = private_dir(kept_dir())
    name = doomed.name.removeprefix(".removed-").rpartition("-")[0]
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    target = next(folder / name for name in names if not (folder / name).exists())
    durable.move(disks, target)
    return target


def leftovers() -> list[Path]:
    """What crashes left behind: throwaway VMs without a process, half-made or
    half-removed folders, those of editors, and this home's run folders that no VM
    uses."""
    found: list[Path] = []
    with contextlib.suppress(FileNotFoundError):
        for entry in vms_dir().iterdir():
            if entry.name.startswith((".new-", ".removed-")):
                found += all_idle([entry])
            elif _abandoned(VmPaths.of(entry.name)):
                found.append(entry)
            else:
                found += all_idle(entry.glob(f"{EDITING}*"))
    with contextlib.suppress(FileNotFoundError):
        for folder in run_home().iterdir():
            paths = VmPaths.of(folder.name)
            if folder.is_dir() and not held(paths.lock):
                found.append(folder)
    return found


def _abandoned(paths: VmPaths) -> bool:
    """Whether a throwaway VM has lost its process and its owner."""
    if held(paths.lock) or not (paths.state / THROWAWAY).exists():
        return False
    with disowned(paths.state) as abandoned:
        return abandoned


# A file in the folder of a VM whose disks are to stay when it is removed.
_KEEP = "keep-disks"
