"""Files of disks that a VM had, and has no more: they stay until their user says."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qemuctl.errors import QemuctlError
from qemuctl.paths import VmPaths
from qemuctl.process import held
from qemuctl.registry.disks.disk_files import disk_files
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.file_users import built_on
from qemuctl.registry.vms import find, load, names


def left_files(name: str, live: Collection[Path] = ()) -> list[Path]:
    """The files in the folder of a VM's disks that no disk of its spec, none of the
    ``live`` ones and none of another VM is made from. None where that cannot be told.

    Raises NotFound, SpecError, ImageError.
    """
    paths = find(name)
    disks = disk_files(load(name), paths, image_of(load(name)))
    if any(disk.problem and not disk.awaited for disk in disks):
        return []
    used = {*live, *(disk.path for disk in disks)}
    used |= {layer.path for disk in disks for layer in disk.chain}
    known = {path.resolve() for path in used}
    return [
        path
        for path in _files(paths)
        if path.resolve() not in known and not set(built_on(path)) - {name}
    ]


def _files(paths: VmPaths) -> list[Path]:
    found = [*paths.disks.glob("*.qcow2"), *paths.disks.glob("*.raw")]
    return sorted(path for path in found if not path.name.startswith("."))


def left_of_all() -> dict[str, list[Path]]:
    """As `left_files`, of each VM that is off and whose spec can be read."""
    found = {}
    for name in names():
        try:
            if not held(VmPaths.of(name).lock) and (left := left_files(name)):
                found[name] = left
        except (QemuctlError, OSError):
            continue
    return found


def way_back(name: str, path: Path) -> str:
    """What to do about such a file, in words."""
    return (
        f"{path} is left of a disk that was removed; to have it again: "
        f"qemuctl disk add {name} --path {path}; else remove it"
    )
