"""The disks of a VM in its spec: one more, one less.

What a change of the spec needs is found out before anything is touched; the
same functions serve a VM that is off and, before and after the live step, one
that runs (see `disks`). Size and limits are in `size_and_limits`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

from qemuctl.errors import HostError, SpecError, StateError, UsageError
from qemuctl.hotplug.disks.results import AddedDisk, RemovedDisk
from qemuctl.hotplug.unplug import Removal
from qemuctl.image.chain import chain
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.disk_files import DiskFile, check_new_medium, disk_files
from qemuctl.registry.disks.resolve import image_of, placed, resolved
from qemuctl.registry.edit import Edit, ids, offset, preview, reconfigure, without
from qemuctl.registry.file_users import built_on, check_nobodys
from qemuctl.registry.offline import check_not_saved, locked
from qemuctl.registry.records.disk_ledger import disown
from qemuctl.registry.records.started_spec import started_spec
from qemuctl.registry.states import Action
from qemuctl.registry.vms import find, load
from qemuctl.spec import Disk, Spec, resolve_paths
from qemuctl.structs import Struct


class NewDisk(Struct, kw_only=False):
    """A disk to be: as the spec gets it, with its id, and as QEMU does, with its
    file, which is to be made when it is ``fresh``; ``edit`` puts it into the spec."""

    written: Disk
    placed: Disk
    fresh: bool
    edit: Edit


def plan_disk(name: str, disk: Disk, taken: Collection[str] = ()) -> NewDisk:
    """What adding a disk comes to; changes nothing.

    ``taken`` are ids that it cannot have, besides those in the spec. Raises
    SpecError for what the spec cannot have, StateError for an id in use or a
    file in the way, ImageError for a file that is not what it is said to be.
    """
    paths = find(name)
    used = ids(load(name), paths) | set(taken)
    wanted = disk.id or _next_id(paths, used)
    if wanted in used:
        raise StateError(
            f"add {wanted} to {name}", "", f"the id is in use: {wanted}",
            hint=f"qemuctl disk ls {name} shows all; without --target a free one "
            "is chosen",
        )  # fmt: skip
    written = _written(disk, wanted, paths)

    def edit(spec: Spec) -> Spec:
        return spec.model_copy(update={"disks": (*spec.disks, written)})

    after = resolve_paths(preview(name, edit), paths.state)
    _check_startable(after, paths)
    path = written.path or str(paths.disk_file(wanted, written.driver))
    whole = written.model_copy(update={"path": path, "size": None})
    if disk.path is None:
        _check_not_there(Path(path), name)
    else:
        check_new_medium(whole, after)
        if written.path is not None and not whole.readonly:
            check_nobodys(Path(path), "path", paths)
    return NewDisk(written, whole, disk.path is None, edit)


def _written(disk: Disk, id_: str, paths: VmPaths) -> Disk:
    """The disk as the spec gets it: with its id, and a path from the root."""
    if disk.path is None:
        return disk.model_copy(update={"id": id_})
    path = Path(disk.path).absolute()
    if path != paths.disk_file(id_, disk.driver) or disk.readonly:
        return disk.model_copy(update={"id": id_, "path": str(path)})
    # One of the VM's own that was removed: it has no path, as before, and so
    # goes along when the VM gets another name.
    size = chain(path, disk.driver)[0].virtual_size
    own = {"id": id_, "path": None, "format": disk.driver, "size": size}
    return disk.model_copy(update=own)


def _next_id(paths: VmPaths, used: set[str]) -> str:
    """The first diskN that nothing has, no file of an earlier disk either."""
    for number in itertools.count():
        id_ = f"disk{number}"
        if id_ not in used and not list(paths.disks.glob(f"{id_}.*")):
            return id_
    raise AssertionError("unreachable")


def _check_not_there(path: Path, name: str) -> None:
    if path.exists():
        raise StateError(
            f"add a new disk to {name}", "", f"the file of an earlier one is there: "
            f"{path}",
            hint=f"to have that one: --path {path}; else remove it, or choose "
            "another --target",
        )  # fmt: skip


def _check_startable(spec: Spec, paths: VmPaths) -> None:
    """Raises SpecError for a spec whose machine has no room or bus for it."""
    from qemuctl.registry.plan import draft

    with contextlib.suppress(HostError):  # which is no fault of the change
        draft(spec, paths)


def disk_of(name: str, id_: str) -> DiskFile | None:
    """A disk of the spec, the image's included, by its id."""
    spec = load(name)
    files = disk_files(spec, find(name), image_of(spec))
    return next((file for file in files if file.target == id_), None)


def boots_from(name: str, id_: str) -> bool:
    """Whether a guest probably runs from a disk that was there at the start: the
    image's own, or the first one of a VM that boots no kernel directly."""
    paths = find(name)
    spec = resolve_paths(started_spec(paths), paths.state)
    image = image_of(spec)
    disks = placed(spec, paths, image)
    if not disks or disks[0].id != id_:
        return False
    direct = resolved(spec, paths, image).boot.kernel is not None
    return of_image(name, id_) or not direct


def of_image(name: str, id_: str) -> bool:
    """Whether a disk comes with the image, not from the spec's list."""
    return id_ in {f"disk{n}" for n in range(offset(load(name), find(name)))}


def no_such_disk(name: str, id_: str, known: Collection[str]) -> StateError:
    """The error for an id that no disk has."""
    every = ", ".join(sorted(known)) or "none"
    return StateError(
        f"find the disk {id_}", "", f"{name} has no such disk: {id_}",
        hint=f"there are: {every}",
    )  # fmt: skip


def known_disk(name: str, id_: str) -> DiskFile:
    file = disk_of(name, id_)
    if file is None:
        spec = load(name)
        files = disk_files(spec, find(name), image_of(spec))
        raise no_such_disk(name, id_, [file.target for file in files])
    return file


# -- removing ------------------------------------------------------------------


def removal_of(name: str, id_: str) -> Edit:
    """Takes a disk out of the spec. Raises SpecError for the image's own."""
    if of_image(name, id_):
        raise SpecError(
            f"it comes with the image, without which there is no {name}",
            key=id_,
            hint="--live takes it away until the next start",
        )
    paths = find(name)
    return lambda spec: without(spec, paths, "disks", id_)


def check_deletable(path: Path, name: str) -> None:
    """Raises UsageError for a file that qemuctl did not make for this VM, or that
    others need."""
    paths = find(name)
    if path.parent != paths.disks:
        raise UsageError(
            f"not made by qemuctl, so it is yours to remove: {path}",
            hint="leave out --delete",
        )
    others = [other for other in built_on(path) if other != name]
    if others:
        raise UsageError(
            f"disks of other VMs are made from it: {', '.join(others)}",
            hint="leave out --delete",
        )


def check_unwritten(name: str, id_: str, *, configured: bool) -> None:
    """Raises UsageError when the spec would keep a disk whose file goes."""
    if not configured and disk_of(name, id_) is not None:
        raise UsageError(
            f"the spec of {name} still needs the file of {id_}",
            hint="--delete goes with --both, or after the disk has left the spec",
        )


def serial_of(name: str, id_: str) -> str:
    """The serial of a disk in the guest."""
    file = disk_of(name, id_)
    return file.serial if file is not None else id_


def remove(name: str, id_: str, *, delete: bool = False) -> RemovedDisk:
    """Takes a disk out of the spec; with ``delete`` its file goes too.

    Raises SpecError, StateError, and UsageError for a file that is not to go.
    """
    file, edit = known_disk(name, id_), removal_of(name, id_)
    there = file.path.exists()
    with contextlib.ExitStack() as stack:
        if delete and there:
            check_deletable(file.path, name)
            stack.enter_context(_unused(name, file))
        reconfigure(name, edit)
        if delete:
            file.path.unlink(missing_ok=True)
        if file.own:
            disown(file.path, find(name))
    return RemovedDisk(
        id=id_,
        outcome=Removal.REMOVED,
        path=file.path if there else None,
        deleted=delete and there,
        live=False,
        configured=True,
    )


@contextlib.contextmanager
def _unused(name: str, file: DiskFile) -> Iterator[None]:
    """For the block the VM is off, so that it does not write to a disk's file.

    Raises UsageError when it is on, StateError where its guest was saved.
    """
    check_not_saved(find(name), Action.CHANGE)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(name, Action.CHANGE))
        except StateError as error:
            raise UsageError(
                f"{name} is on, and may use the file of {file.target}: {file.path}",
                hint="leave out --delete; or --config, to take it away now too",
            ) from error
        yield


def add(name: str, disk: Disk) -> AddedDisk:
    """Writes one more disk into the spec; a new one is made at the next start.

    Raises as `plan_disk` does.
    """
    new = plan_disk(name, disk)
    path = Path(new.placed.path or "")
    if new.fresh:
        disown(path, find(name))  # whatever was lost under this name
    reconfigure(name, new.edit)
    return AddedDisk(
        id=new.placed.id or "",
        serial=new.placed.serial or new.placed.id or "",
        path=path,
        live=False,
        configured=True,
    )
