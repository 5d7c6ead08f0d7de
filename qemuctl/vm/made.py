"""Which disks were made for a VM: none of them is made a second time."""

from __future__ import annotations

import contextlib
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.paths import VmPaths


def made_names(paths: VmPaths) -> list[str]:
    """The names of the files that were made for the disks that the VM has."""
    with contextlib.suppress(FileNotFoundError):
        return paths.made.read_text().splitlines()
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


def remember(path: Path, paths: VmPaths) -> None:
    """Notes that a disk's file was made, so that nobody makes it a second time."""
    if path.exists() and path.name not in made_names(paths):
        with paths.made.open("a") as file:
            file.write(f"{path.name}\n")


def disown(path: Path, paths: VmPaths) -> None:
    """Forgets that a disk's file was made: the VM has no such disk any more."""
    kept = [name for name in made_names(paths) if name != path.name]
    if path.parent == paths.disks and kept != made_names(paths):
        fresh = paths.made.with_name(f"{paths.made.name}.new")
        fresh.write_text("".join(f"{name}\n" for name in kept))
        fresh.replace(paths.made)
