"""A VM that is on its way to another home: what is known of that here.

It is written before it is done, so that whoever comes next knows it whatever died:
above all whether the other side may have been told to go on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qemuctl import durable
from qemuctl.errors import DamagedFile, StateError
from qemuctl.paths import VmPaths
from qemuctl.process import Identity, held, take
from qemuctl.structs import Struct


class Leaving(Struct):
    """A VM on its way from here.

    ``controller`` is the process that moves it, to be told to stop; whether it is still
    at it, `attended` knows. ``said_go`` tells that the other side
    may have been told to go on, so that the guest must not go on here before that is
    known. ``receiver`` is the command there, ``home`` what tells that home from others,
    ``ran`` whether the guest ran at first.
    """

    token: str
    destination: str
    name: str
    receiver: str
    controller: Identity | None
    phase: str
    ran: bool
    keep: bool
    home: str = ""
    said_go: bool = False
    postcopy: bool = False

    def write(self, paths: VmPaths) -> None:
        """On the disk when it returns. Raises HostError."""
        durable.write_json(paths.migration, asdict(self))

    def note_phase(self, paths: VmPaths) -> None:
        """Tells others the phase, inside of `moving`. It decides nothing and changes
        while the guest stands still, so that nobody waits for the disk."""
        with contextlib.suppress(OSError):
            _lock(paths).write_text(self.phase)

    @classmethod
    def read(cls, paths: VmPaths) -> Leaving | None:
        """None where the VM is not on its way. Raises DamagedFile for one that cannot
        be read: its guest may run elsewhere."""
        hint = "look for it where it was to go; if it is not there: qemuctl "
        hint += f"migrate-recover {paths.name} --here"
        try:
            with durable.understood(paths.migration, hint):
                values: dict[str, Any] = json.loads(paths.migration.read_text())
                if values["controller"] is not None:
                    values["controller"] = Identity(**values["controller"])
                values["phase"] = _noted_phase(paths) or values["phase"]
                return cls(**values)
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def moving(paths: VmPaths) -> Iterator[None]:
    """For the block, in which nobody else changes or starts the VM, others see that
    somebody moves it."""
    fd = take(_lock(paths))
    try:
        yield
    finally:
        _lock(paths).unlink(missing_ok=True)
        if fd is not None:
            os.close(fd)


def _lock(paths: VmPaths) -> Path:
    return paths.state / "migration.lock"


def _noted_phase(paths: VmPaths) -> str:
    try:
        return _lock(paths).read_text()
    except FileNotFoundError:
        return ""


def attended(paths: VmPaths) -> bool:
    """Whether whoever moves it is still at it."""
    return held(_lock(paths))


def on_its_way(paths: VmPaths) -> str | None:
    """What is to be said of a VM's migration; None where there is none."""
    if not paths.migration.exists():
        return None
    try:
        leaving = Leaving.read(paths)
    except DamagedFile as error:
        return f"migration: {error.message}"
    if leaving is None:
        return None
    if attended(paths):
        return f"migration to {leaving.destination}: {leaving.phase}"
    if leaving.postcopy:
        return "migration: its memory has yet to follow"
    return "migration: outcome unknown" if leaving.said_go else "migration: interrupted"


def check_here(paths: VmPaths, action: str) -> None:
    """Raises StateError where the guest may run elsewhere by now, so that it must not
    take another step here, and while it is being moved."""
    leaving = Leaving.read(paths)
    if leaving is None:
        return
    if attended(paths):
        raise StateError(
            f"{action} {paths.name}", "running", "it is just being migrated",
            hint=f"to call that off: qemuctl migrate-cancel {paths.name}",
        )  # fmt: skip
    if leaving.said_go:
        raise StateError(
            f"{action} {paths.name}", "unknown",
            f"it may be running already in {leaving.destination}: the outcome of its "
            "migration is not known",
            hint=f"both sides are asked by: qemuctl migrate-recover {paths.name}",
        )  # fmt: skip


def end(paths: VmPaths) -> None:
    """The migration is over, here."""
    durable.remove(paths.migration)
    _lock(paths).unlink(missing_ok=True)  # of a command that was killed
