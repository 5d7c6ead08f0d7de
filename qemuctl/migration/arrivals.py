"""Which VMs were told to go on here, by the tokens of their migrations.

It stays when the VM has gone again: a source that asks late must hear of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import time
from dataclasses import asdict
from pathlib import Path

from qemuctl import durable
from qemuctl.paths import VmPaths, private_dir, state_home
from qemuctl.structs import Struct

# Seconds in which a source whose migration was cut short is recovered: 90 days.
_ASKED_WITHIN = 90 * 24 * 3600.0
_TOKEN = re.compile(r"[0-9a-f]{32}")


def _arrivals() -> Path:
    return state_home() / "arrivals"


class Arrival(Struct):
    """A VM that was told to go on here, under the token of its migration; ``stepped``
    once it has been let go on."""

    token: str
    name: str
    stepped: bool = False

    def write(self) -> None:
        """On the disk when it returns."""
        private_dir(_arrivals())
        durable.write_json(_arrivals() / _checked(self.token), asdict(self))

    def forget(self) -> None:
        """It never took a step here, and never will."""
        durable.remove(_arrivals() / _checked(self.token))

    @classmethod
    def read(cls, token: str) -> Arrival | None:
        """None where no VM of this token was told to go on. Raises DamagedFile."""
        path = _arrivals() / _checked(token)
        hint = "look whether its VM is here and ran; if not: "
        try:
            with durable.understood(path, f"{hint}rm {shlex.quote(str(path))}"):
                return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None


def land(paths: VmPaths, token: str) -> None:
    """Marks a VM that comes while it is off, in its folder, which is out of sight."""
    durable.write_json(paths.landed, {"token": token})


def landing(paths: VmPaths) -> str | None:
    """The token under which a VM comes, or has come, that was off; None for any other
    one, and where its source knows. Raises DamagedFile."""
    hint = f"if {paths.name} is nowhere else: rm {shlex.quote(str(paths.landed))}"
    try:
        with durable.understood(paths.landed, hint):
            return _checked(json.loads(paths.landed.read_text())["token"])
    except FileNotFoundError:
        return None


def landed(paths: VmPaths) -> bool:
    """Whether a VM has come while it was off, and its source may not know. That is then
    written down for good: it may be removed, or move on, before its source asks."""
    token = landing(paths)
    if token is None:
        return False
    Arrival(token=token, name=paths.name, stepped=True).write()
    return True


def _checked(token: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"not a token: {token!r}")
    return token


def leftovers() -> list[Path]:
    """Those of which no source will ask any more."""
    past = time.time() - _ASKED_WITHIN
    found = []
    for path in _arrivals().glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < past:
                found.append(path)
    return sorted(found)
