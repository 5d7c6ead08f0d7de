"""What was plugged into a running VM since its start: the disks and cards as models.

QEMU knows what is there, and where; what it cannot tell is how our spec says it. An
entry is written before its device is plugged in, and says nothing of whether the
device has come, or is still there.
"""

from __future__ import annotations

import json
from typing import Any

from qemuctl import durable
from qemuctl.paths import VmPaths
from qemuctl.spec import Disk, Nic


def note_plugged(paths: VmPaths, part: str, device: Disk | Nic) -> None:
    """Writes down a disk or card, with its id and all that it is made of; ``part`` is
    ``disks`` or ``nics``. Inside of `Bus.changing` only."""
    notes = _read(paths)
    notes[str(device.id)] = {
        "part": part,
        "device": device.model_dump(exclude_defaults=True),
    }
    # Of no use once this run has ended.
    durable.write_json(paths.plugged, notes, durable=False)


def plugged_disks(paths: VmPaths) -> list[Disk]:
    """All disks that were plugged in, oldest first."""
    return [Disk.model_validate(each) for each in _of(paths, "disks")]


def plugged_nics(paths: VmPaths) -> list[Nic]:
    """All cards that were plugged in, oldest first."""
    return [Nic.model_validate(each) for each in _of(paths, "nics")]


def _of(paths: VmPaths, part: str) -> list[Any]:
    return [note["device"] for note in _read(paths).values() if note["part"] == part]


def _read(paths: VmPaths) -> dict[str, dict[str, Any]]:
    """All notes. Raises DamagedFile: without them a disk would be taken for none."""
    name = paths.name
    hint = f"it is begun anew by a start: qemuctl stop {name}, qemuctl start {name}"
    try:
        with durable.understood(paths.plugged, hint):
            notes = json.loads(paths.plugged.read_text())
            return {id_: {**note, "part": note["part"]} for id_, note in notes.items()}
    except FileNotFoundError:
        return {}
