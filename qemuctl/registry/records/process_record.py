"""Who the process of a VM is, kept beside its spec.

Written once a start has succeeded, again when its forwards or cables change,
and true only while the VM's lock is held. It repeats nothing that QEMU can be asked.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from qemuctl import durable
from qemuctl.process import Identity
from qemuctl.structs import Struct


class Record(Struct):
    """One run of one VM.

    ``argv`` is the line that can be pasted; ``run`` the folder of sockets at
    the time of the start (another login may have another); ``attached`` tells
    that it dies with ``owner``; ``forwards`` are port forwards as
    ``ADDRESS:PORT->GUEST_PORT``, free ports read back; ``links_down`` are cards
    whose cable is out, which QEMU does not tell; ``template`` is what it is a fork
    of; ``continued`` tells that its guest has booted in an earlier run, or elsewhere.
    """

    qemu: Identity
    shepherd: Identity
    owner: Identity | None
    attached: bool
    run: str
    started_at: float
    argv: list[str]
    accel: str
    accel_reason: str
    version: str
    machine: str
    cpus: int
    memory: int
    image: str | None = None
    forwards: list[str] = field(default_factory=list)
    links_down: list[str] = field(default_factory=list)
    template: str | None = None
    continued: bool = False

    def option(self, switch: str) -> str | None:
        """The value of the first such option on QEMU's command line."""
        pairs = itertools.pairwise(self.argv)
        return next((value for name, value in pairs if name == switch), None)

    @property
    def sata(self) -> bool:
        """Whether q35 has its disk controller; true for every other machine."""
        return "sata=off" not in (self.option("-machine") or "")

    def write(self, path: Path) -> None:
        """Replaces the file as a whole."""
        durable.write_json(path, asdict(self), durable=False)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record; None when there is none or it makes no sense."""
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            for name in ("qemu", "shepherd", "owner"):
                if values[name] is not None or name != "owner":
                    values[name] = Identity(**values[name])
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError):
            return None
