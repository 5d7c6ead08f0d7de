"""A VM that has moved to another home, and whose spec and disks were kept here.

Its disks are those of the moment in which it left. A start from them would be a
second VM of the same identity, so it must be asked for.
"""

from __future__ import annotations

import json
import time

from qemuctl import durable
from qemuctl.errors import StateError
from qemuctl.paths import VmPaths


def note_moved(paths: VmPaths, name: str, destination: str) -> None:
    """Writes down where it went, and what it is called there."""
    values = {"name": name, "destination": destination, "at": time.time()}
    durable.write_json(paths.moved, values)


def moved_to(paths: VmPaths) -> str | None:
    """Where a VM went; None for one that is here."""
    if not paths.moved.exists():
        return None
    try:
        return str(json.loads(paths.moved.read_text())["destination"])
    except (OSError, ValueError, LookupError, TypeError):
        return "another home"


def check_not_moved(paths: VmPaths, action: str = "start") -> None:
    """Raises StateError for a VM that has gone elsewhere."""
    destination = moved_to(paths)
    if destination is not None:
        raise StateError(
            f"{action} {paths.name}", "off", f"it has moved to {destination}",
            hint="a second one, from its disks as it left them: "
            f"qemuctl start {paths.name} --fresh",
        )  # fmt: skip
