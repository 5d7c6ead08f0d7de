"""Which disks were made for a VM: none of them is made a second time."""

from __future__ import annotations

import contextlib
from pathlib import Path

from qemuctl.durable import understood, write
from qemuctl.errors import ImageError
from qemuctl.paths import VmPaths


def made_names(paths: VmPaths) -> list[str]:
    """The names of the files that were made for the disks that the VM has."""
    hint = "the names of the files of its disks belong there, a line for each"
    with contextlib.suppress(FileNotFoundError):
        with understood(paths.made, hint):
            return paths.made.read_text(encoding="utf-8").splitlines()
    return []


def check_not_lost(path: Path, paths: VmPaths) -> None:
    """Raises ImageError for a disk that was made and is not there.

    An empty disk in the place of a lost one would look like a wiped one.
    """
    if path.name in made_names(paths):
        raise ImageError(
            f"this disk of the VM is gone: {path}",
            hint="put it back; or, to go on with a new one, remove its name from "
            f"{paths.made}",
        )


def remember(path: Path, paths: VmPaths, *, durable: bool = True) -> None:
    """Notes that a disk's file was made, so that nobody makes it a second time; on the
    disk, but for a VM that is thrown away, or synced as a whole later."""
    if path.exists() and path.name not in made_names(paths):
        _write(paths, [*made_names(paths), path.name], durable=durable)


def disown(path: Path, paths: VmPaths) -> None:
    """Forgets that a disk's file was made: the VM has no such disk any more."""
    kept = [name for name in made_names(paths) if name != path.name]
    if path.parent == paths.disks and kept != made_names(paths):
        _write(paths, kept)


def _write(paths: VmPaths, names: list[str], *, durable: bool = True) -> None:
    write(paths.made, "".join(f"{name}\n" for name in names), durable=durable)
