"""Which saved states are our own, and what one of somebody else's may have.

A VM remembers the checksums of the files that it was saved to. Any other file, be it
only its head that was changed, passes the gate of `copies.foreign_spec`.
"""

from __future__ import annotations

import re
from pathlib import Path

from qemuctl import durable
from qemuctl.copies.foreign_spec import check_inside, outside, without_stored
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.resolve import image_of, placed, seeded
from qemuctl.registry.saved_state import About, StateFile
from qemuctl.registry.vms import names
from qemuctl.spec import parse_spec

# A disk that was made for a VM.
_OWN_DISK = re.compile(r"disks/[a-z][a-z0-9-]{0,19}\.(qcow2|raw)")
# So many states that a VM was saved to are remembered.
_REMEMBERED = 100


def remember_save(paths: VmPaths, state: StateFile) -> None:
    """Notes that the VM was saved to this file, which `saved_here` then knows. Raises
    OSError."""
    lines = [*_sums(paths), state.head_sha256][-_REMEMBERED:]
    durable.write(paths.saves, "".join(f"{line}\n" for line in lines))


def _sums(paths: VmPaths) -> list[str]:
    try:
        return paths.saves.read_text().splitlines()
    except (OSError, ValueError):
        return []


def saved_here(state: StateFile) -> bool:
    """Whether a VM of this home has written the file, head and stream."""
    every = (VmPaths.of(name) for name in names())
    return any(state.head_sha256 in _sums(paths) for paths in every)


def check_state(state: StateFile, paths: VmPaths) -> None:
    """Raises SpecError for a saved state from elsewhere that needs more than the VM's
    own files, or is to have files of a VM here that it cannot know.

    In a VM that exists it must know each disk by size and time; in a new one nothing
    is copied for it from the folder that it names.
    """
    about = state.about
    spec = parse_spec(about.spec, source=str(state.path), name=about.name)
    own = {disk.path for disk in about.disks if _OWN_DISK.fullmatch(disk.path)}
    check_inside(without_stored(spec), own, state.path)
    if _known_disks(about, paths) if paths.state.exists() else _takes_nothing(about):
        return
    raise outside(state.path, "home")


def _known_disks(about: About, paths: VmPaths) -> bool:
    spec = about.ran(paths.state)
    known = {(disk.id, disk.file(paths.state)) for disk in about.disks}
    used = placed(spec, paths, image_of(spec))
    return bool(used) and all((d.id, Path(d.path or "")) in known for d in used)


def _takes_nothing(about: About) -> bool:
    """Whether there is nothing to copy from the VM that was saved."""
    home = Path(about.home)
    spec = about.ran(home)
    image = image_of(spec)
    boots = spec.boot.kernel is not None
    return not (
        placed(spec, VmPaths(home, home), image) or seeded(spec, image) or boots
    )
