"""A disk's size and limits: in its file while the VM is off, and in its spec."""

from __future__ import annotations

from typing import Any

from qemuctl.errors import SpecError, StateError, UsageError
from qemuctl.hotplug.disks.in_spec import known_disk, of_image
from qemuctl.hotplug.disks.results import DiskLimits, ResizedDisk
from qemuctl.image.files import resize as resize_file
from qemuctl.paths import VmPaths
from qemuctl.registry.edit import Edit, offset, preview, reconfigure
from qemuctl.registry.offline import check_not_saved
from qemuctl.registry.states import Action
from qemuctl.registry.vms import find, load
from qemuctl.spec import Spec
from qemuctl.units import format_size

_SECTOR = 512


def new_size(before: int, size_bytes: int, *, relative: bool, id_: str) -> int:
    """The size that is wanted, in bytes. Raises UsageError when it is smaller than
    before, or no whole number of sectors."""
    wanted = before + size_bytes if relative else size_bytes
    if wanted % _SECTOR:
        raise UsageError(f"not a whole number of sectors (512 bytes): {wanted}")
    if wanted < before:
        raise UsageError(
            f"smaller than {id_} is, {format_size(wanted)} instead of "
            f"{format_size(before)}",
            hint="a disk only grows here; qemuctl image resize --shrink cuts off the "
            "end of a file that no VM runs on",
        )
    return wanted


def size_edit(name: str, id_: str, size_bytes: int) -> Edit | None:
    """Writes a size into the spec; None for a disk that has none there."""
    paths = find(name)
    if of_image(name, id_):
        return lambda spec: spec.model_copy(
            update={"root": spec.root.model_copy(update={"size": size_bytes})}
        )
    index = _index(load(name), paths, id_)
    if index is None or load(name).disks[index].size is None:
        return None
    return _changing(paths, id_, {"size": size_bytes})


async def resize(
    name: str, id_: str, size_bytes: int, *, relative: bool = False
) -> ResizedDisk:
    """Gives a disk of a VM that is off more bytes, in its file and in the spec.

    Raises UsageError for fewer, StateError where its guest was saved, ImageError, and
    ImageInUse while the VM runs.
    """
    check_not_saved(find(name), Action.CHANGE)
    file = known_disk(name, id_)
    before = file.size
    if before is None and file.awaited:
        before = _written_size(name, id_)
    if before is None:
        raise StateError(f"resize {id_}", "", file.problem or "its size is not known")
    size = new_size(before, size_bytes, relative=relative, id_=id_)
    edit = size_edit(name, id_, size)
    if edit is not None:
        preview(name, edit)
    if size > before and not file.awaited:
        await resize_file(file.path, file.format, size)
    if edit is not None:
        reconfigure(name, edit)
    return ResizedDisk(
        id=id_, before_bytes=before, size_bytes=size, live=False,
        configured=edit is not None,
    )  # fmt: skip


def _written_size(name: str, id_: str) -> int | None:
    spec = load(name)
    if of_image(name, id_):
        return spec.root.size
    index = _index(spec, find(name), id_)
    return None if index is None else spec.disks[index].size


def _index(spec: Spec, paths: VmPaths, id_: str) -> int | None:
    before = offset(spec, paths)
    for index, disk in enumerate(spec.disks):
        if (disk.id or f"disk{index + before}") == id_:
            return index
    return None


def _changing(paths: VmPaths, id_: str, fields: dict[str, Any]) -> Edit:
    """Changes fields of one disk, wherever it stands by then."""

    def edit(spec: Spec) -> Spec:
        index = _index(spec, paths, id_)
        if index is None:
            raise SpecError(f"no such id: {id_}", key="disks")
        disks = list(spec.disks)
        disks[index] = disks[index].model_copy(update=fields)
        return spec.model_copy(update={"disks": tuple(disks)})

    return edit


# -- limits --------------------------------------------------------------------


def limit_edit(name: str, id_: str, fields: dict[str, int | None]) -> Edit | None:
    """Writes limits (``iops``, ``bps``; None for none) into the spec; None when it
    has no such disk in its list."""
    paths = find(name)
    if _index(load(name), paths, id_) is None:
        return None
    return _changing(paths, id_, fields)


def limit_fields(
    iops: int | None, bytes_per_second: int | None
) -> dict[str, int | None]:
    """What is to change: None stays as it is, 0 becomes none."""
    given = {"iops": iops, "bps": bytes_per_second}
    if all(value is None for value in given.values()):
        raise UsageError("nothing to set", hint="give --iops, --bps, or both")
    return {key: value or None for key, value in given.items() if value is not None}


def limit(
    name: str, id_: str, *, iops: int | None = None, bytes_per_second: int | None = None
) -> DiskLimits:
    """Writes limits into the spec, for its next start; raises as `plan_disk`."""
    fields = limit_fields(iops, bytes_per_second)
    known_disk(name, id_)
    edit = limit_edit(name, id_, fields)
    if edit is None:
        raise SpecError(
            "the spec has no limits for the image's own disk",
            key=id_,
            hint="--live sets them until the next start",
        )
    spec = reconfigure(name, edit)
    disk = spec.disks[_index(spec, find(name), id_) or 0]
    return DiskLimits(
        id=id_, iops=disk.iops, bytes_per_second=disk.bps, live=False, configured=True
    )
