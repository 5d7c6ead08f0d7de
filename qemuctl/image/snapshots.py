"""Snapshots inside a qcow2 file, while no VM uses it: `qemu-img snapshot`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from qemuctl.errors import ImageError, UsageError
from qemuctl.image import qemu_img
from qemuctl.image.chain import chain, refuse_data_file
from qemuctl.structs import Struct
from qemuctl.tail import plain

_LONGEST_NAME = 255  # QEMUSnapshotInfo.name holds 256 bytes


class Snapshot(Struct, kw_only=False):
    """A state of the disk, with any text as its name.

    ``vm_state_size`` in bytes is that of a running guest's memory, 0 if there is
    none.
    """

    id: str
    name: str
    created: datetime
    vm_state_size: int


def snapshots(path: Path) -> list[Snapshot]:
    """The snapshots in a qcow2 file, also while a VM runs on it. Raises ImageError."""
    refuse_data_file(path)
    found = qemu_img.info(path, "qcow2").get("snapshots", [])
    return [
        Snapshot(
            id=one["id"],
            name=one["name"],
            created=datetime.fromtimestamp(one["date-sec"], UTC),
            vm_state_size=one["vm-state-size"],
        )
        for one in found
    ]


async def snapshot_create(path: Path, name: str) -> None:
    """Keeps the present state under a name.

    Raises UsageError for a name that cannot be, ImageError when there is one of
    that name, ImageInUse while a VM runs on the file.
    """
    if not name.strip() or len(name.encode()) > _LONGEST_NAME:
        raise UsageError(f"not a name for a snapshot: {name!r}")
    if name.isdecimal():
        raise UsageError(
            f"not a name for a snapshot: {name}",
            hint="QEMU would take digits alone for the number of another",
        )
    if any(one.name == name for one in snapshots(path)):
        raise ImageError(f"there is a snapshot of this name already: {name}")
    await _do("-c", name, path)


async def snapshot_apply(path: Path, name: str) -> None:
    """Takes the disk back to a snapshot; what it holds now is lost.

    Raises ImageError when there is none of that name, ImageInUse while a VM runs.
    """
    _find(path, name)
    await _do("-a", name, path)


async def snapshot_delete(path: Path, name: str) -> None:
    """Removes a snapshot; its room in the file can be used again.

    Raises ImageError when there is none of that name, ImageInUse while a VM runs.
    """
    _find(path, name)
    await _do("-d", name, path)


def _find(path: Path, name: str) -> Snapshot:
    known = snapshots(path)
    for one in known:
        if one.name == name:
            return one
    names = plain(", ".join(one.name for one in known))
    raise ImageError(
        f"no such snapshot in {path}: {name}", hint=f"there is: {names or 'none'}"
    )


async def _do(switch: str, name: str, path: Path) -> None:
    chain(path, "qcow2")
    await qemu_img.job(
        # There is no -f, and without a format QEMU would guess.
        "snapshot", switch, name, "--image-opts", qemu_img.options(path, "qcow2"),
        writes=path,
    )  # fmt: skip
