"""What a command has begun to plug in or out of a running VM, and not yet ended.

A front end goes only when the guest lets go of it, which may be long after
the command that asked has gone; a command may die in the middle of an add. What
QEMU then still has, and what is to be done once the device has gone, is
written here first, and done by whichever command comes next.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qemuctl import durable
from qemuctl.structs import Struct


class Change(Struct):
    """One device on its way in or, with ``removal``, out.

    ``nodes``, ``netdev`` and ``objects`` are the back ends to take away, in this
    order, when the device is not there; ``made`` is a file to remove when an add
    has failed. ``configured`` names the part of the spec (``disks`` or
    ``nics``) that loses the device when a removal is done, or gets ``entry`` once
    it is in. ``file`` is that of a disk to be removed, and goes with ``delete``.
    """

    device: str
    removal: bool
    nodes: tuple[str, ...] = ()
    netdev: str | None = None
    objects: tuple[str, ...] = ()
    made: str | None = None
    file: str | None = None
    delete: bool = False
    configured: str | None = None
    entry: dict[str, Any] | None = None


class Journal:
    """The file of changes that are under way. Whoever writes has the VM's lock for
    changes (see `Bus.changing`)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def changes(self) -> list[Change]:
        """All of them, oldest first. Raises DamagedFile: a device may be on its way."""
        hint = "see that its disks and NICs are as they should be, then: "
        hint += f"rm {shlex.quote(str(self._path))}"
        try:
            with durable.understood(self._path, hint):
                return [_change(entry) for entry in json.loads(self._path.read_text())]
        except FileNotFoundError:
            return []

    def begin(self, change: Change) -> None:
        """Writes a change down, in the place of another one of this device."""
        kept = [each for each in self.changes() if each.device != change.device]
        self._write([*kept, change])

    def end(self, device: str) -> None:
        """Forgets the change of a device."""
        kept = [each for each in self.changes() if each.device != device]
        if kept:
            self._write(kept)
        else:
            durable.remove(self._path)

    def _write(self, changes: list[Change]) -> None:
        durable.write_json(self._path, [asdict(change) for change in changes])


def _change(entry: dict[str, Any]) -> Change:
    change = Change(**entry)
    return replace(change, nodes=tuple(change.nodes), objects=tuple(change.objects))
