"""User-creatable objects: ``-object`` and ``object-add``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from qemuctl.cmdline.qapi import JsonOption


class Object(JsonOption):
    """An object of type ``qom_type``."""

    OPTION: ClassVar = "-object"
    qom_type: str
    id: str


class RngBuiltin(Object):
    """QEMU's own random number generator; it needs no file of the host."""

    qom_type: str = "rng-builtin"


class MemoryBackendFile(Object):
    """The bytes of a file as memory; unless ``share``, writes to it stay private.

    ``readonly`` is the file, and then ``rom`` whether the memory is, too.
    """

    qom_type: str = "memory-backend-file"
    mem_path: Path
    size: int
    share: bool
    readonly: bool | None = None
    rom: Literal["off"] | None = None
    reserve: bool = False


class MemoryBackendRam(Object):
    """Host memory behind a memory device, ``size`` in bytes; taken when it is used."""

    qom_type: str = "memory-backend-ram"
    size: int
    # Else the host would count all of what virtio-mem may ever grow to.
    reserve: bool = False
