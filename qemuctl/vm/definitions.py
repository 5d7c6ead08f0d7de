"""The VMs that exist, as folders: create, load, rename, remove."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl import durable
from qemuctl.errors import (
    NameInUse,
    NotFound,
    QemuctlError,
    StateError,
    UsageError,
)
from qemuctl.paths import VmPaths, kept_dir, private_dir, run_home, vms_dir
from qemuctl.process import at_work, held, take
from qemuctl.process.working import all_idle, idle, making, working
from qemuctl.vm.owner import THROWAWAY, disowned
from qemuctl.vm.record import Record
from qemuctl.vm.run_folders import clear_run
from qemuctl.vm.states import Action, State, require

if TYPE_CHECKING:  # `ls` must not pay for pydantic
    from qemuctl.spec import Spec


def names() -> list[str]:
    """The names of all VMs, throwaway ones too, sorted."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(
            entry.name
            for entry in os.scandir(vms_dir())
            if entry.is_dir() and not entry.name.startswith(".")
        )
    return []


def find(name: str) -> VmPaths:
    """The paths of an existing VM. Raises NotFound, with the nearest name."""
    paths = VmPaths.of(name)
    if not _exists(paths, name):
        close = get_close_matches(name, names(), 1)
        raise NotFound(name, hint=f"did you mean {close[0]}?" if close else None)
    record = Record.read(paths.record)
    if record is not None and held(paths.lock):
        return paths.ran_in(_run_folder(record))
    return paths


def _run_folder(record: Record) -> Path:
    """Where the sockets of a VM that is on are: where its QEMU sees them, if that has
    another ``/tmp`` than we (proc_pid_root(5))."""
    run = Path(record.run)
    there = Path(f"/proc/{record.qemu.pid}/root") / run.relative_to("/")
    # Not Path.is_dir, which raises where a folder does not let us in.
    seen = os.path.isdir(run)  # noqa: PTH112
    if not seen and record.qemu.alive() and os.path.isdir(there):  # noqa: PTH112
        return there
    return run


def _exists(paths: VmPaths, name: str) -> bool:
    # A name with a slash would name a folder elsewhere, none the one of all VMs.
    if not name or "/" in name or name.startswith("."):
        return False
    try:
        # The lock counts too: a VM whose spec is lost can still be ended and removed.
        return paths.spec.is_file() or paths.lock.is_file()
    except OSError:  # a name too long for a folder
        return False


def load(name: str) -> Spec:
    """The spec of a VM. Raises NotFound, or SpecError for a damaged file."""
    from qemuctl.spec import load_spec

    # The folder is the name: a rename may have been cut short before the text.
    return load_spec(find(name).spec, name=name)


def create(spec: Spec, text: str | None = None) -> VmPaths:
    """Makes the folder of a new VM; ``text`` is the spec as its user wrote it.

    Raises NameInUse. The folder appears whole or not at all; its disks are
    made at the first start.
    """
    with creating(spec, text):
        pass
    return VmPaths.of(spec.name)


@contextlib.contextmanager
def creating(spec: Spec, text: str | None = None) -> Iterator[VmPaths]:
    """As `create`, with a block in which files can be put into the new folder.

    The VM is there, by a rename, once the block has ended well, and on the disk with
    all of it: large files are best synced in the block, in a thread.
    """
    from qemuctl.spec import dump
    from qemuctl.spec.rewrite import rewritten
    from qemuctl.vm.addresses import unlike

    private_dir(vms_dir())
    paths = VmPaths.of(spec.name)
    if paths.state.exists():
        raise name_in_use(spec.name)
    own = unlike(spec, (VmPaths.of(name).spec for name in names()))
    if own is not spec:
        text = dump(own) if text is None else rewritten(text, own)
        spec = own
    with making(vms_dir(), f".new-{spec.name}-") as fresh:
        (fresh / paths.spec.name).write_text(text if text is not None else dump(spec))
        (fresh / paths.lock.name).touch(0o600)
        yield VmPaths(fresh, paths.run)
        try:
            durable.sync_tree(fresh)
            # rename(2) refuses to replace a folder that is not empty.
            durable.move(fresh, paths.state)
        except OSError as error:
            if paths.state.exists():
                raise name_in_use(spec.name) from error
            raise


def name_in_use(name: str) -> NameInUse:
    """The error for a name that is taken."""
    return NameInUse(name, VmPaths.of(name).state)


def replace(name: str, text: str, *, expected: str | None = None) -> None:
    """Puts a new spec in the place of a VM's, as a whole.

    Raises StateError unless the present one is ``expected``, if that is given.
    """
    with writing(name) as path:
        if expected is not None and path.read_text() != expected:
            raise StateError(
                f"change {name}", "changed", "another command has changed it meanwhile"
            )
        write(path, text)


@contextlib.contextmanager
def writing(name: str) -> Iterator[Path]:
    """The file of a VM's spec, which nobody else changes for the block; a short one,
    for others stand still meanwhile. Raises NotFound, HostError."""
    paths = find(name)
    with working(paths.state):
        yield paths.spec


def write(path: Path, text: str) -> None:
    """Puts a spec's text in the place of another, as a whole and on the disk."""
    durable.write(path, text)


def set_cdrom(name: str, medium: str) -> None:
    """Changes the medium in a VM's spec, for its next start; empty is none.

    Raises NotFound, SpecError.
    """
    from qemuctl.spec import changed, parse_spec

    text = find(name).spec.read_text()
    new = changed(text, parse_spec(text, name=name), "cdrom", medium)
    replace(name, new, expected=text)


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
    from qemuctl.vm.saved import is_saved

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
    from qemuctl.vm.settled import conclude_all

    try:
        conclude_all(paths)
    except (QemuctlError, OSError):
        if action is not Action.REMOVE:  # which all of it goes with
            raise


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
    _refuse_needed(paths, Action.REMOVE)
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


def _refuse_needed(paths: VmPaths, action: Action) -> None:
    from qemuctl.vm.users import needing

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


def rename(name: str, new: str) -> None:
    """Gives a VM that is off another name; its cards keep their MAC addresses.

    Raises NotFound, NameInUse, and StateError when it is on, or when another
    VM's disks are made from its own.
    """
    from qemuctl.spec import parse_spec, renamed, validate_name
    from qemuctl.spec.rewrite import rewritten
    from qemuctl.vm.addresses import with_macs

    validate_name(new)
    if name == new and find(name):
        raise UsageError(f"that is its name already: {name}")
    with locked(name, Action.RENAME) as paths:
        _refuse_needed(paths, Action.RENAME)
        target = VmPaths.of(new)
        if target.state.exists():
            raise name_in_use(new)
        text = paths.spec.read_text()
        spec = with_macs(parse_spec(text, source=str(paths.spec), name=name), name)
        # First, for by the folder's new name they would be others.
        text = rewritten(text, spec)
        write(paths.spec, text)
        text = renamed(text, spec, new)
        # Before the folder has its new name: the disk may be full.
        with durable.prepared(paths.spec, text) as fresh:
            try:
                durable.move(paths.state, target.state)
            except OSError as error:
                raise name_in_use(new) from error
            durable.move(target.state / fresh.name, target.spec)


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


# How a folder begins that is in a VM's, and has its spec in an editor.
EDITING = ".edit-"
# A file in the folder of a VM whose disks are to stay when it is removed.
_KEEP = "keep-disks"
