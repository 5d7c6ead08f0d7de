"""Guest memory that is a file: what templates and their forks are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from pathlib import Path

from qemuctl.cmdline.devices import VmGenId
from qemuctl.cmdline.keyval import Plain
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.objects import MemoryBackendFile
from qemuctl.host import Host
from qemuctl.spec.model import Spec
from qemuctl.structs import Struct

RAM = "ram"


class RamFile(Struct):
    """The file that holds a guest's memory.

    With ``shared`` what the guest writes is in the file: a template is filled so.
    Without, the guest starts from what is in it and keeps what it writes to itself:
    a fork, which waits for its devices' state (``-incoming defer``) and has a
    ``uuid`` of its own.
    """

    path: Path
    shared: bool
    uuid: str | None = field(default=None)


def memory(spec: Spec, host: Host, ram: RamFile) -> Iterator[Element]:
    """What takes the place of the memory that QEMU would make.

    Raises HostError when the binary has no memory in files.
    """
    host.binary.require_object("memory-backend-file", "a template")
    # Copy-on-write memory is only taken when it is written to. What a guest gives
    # back would be cut out of the file, other guests' too: so no balloon.
    assert not spec.balloon
    # Opened for reading only, where QEMU can (9.0): nothing can cut holes into it.
    guarded = not ram.shared and "rom" in host.binary.memory_file
    yield MemoryBackendFile(
        id=RAM,
        mem_path=ram.path,
        size=spec.memory.size,
        share=ram.shared,
        readonly=True if guarded else None,
        rom="off" if guarded else None,
    )
    # The guest's kernel learns by it that it is another one now, and makes its
    # random numbers anew.
    if spec.chipset != "microvm" and "vmgenid" in host.binary.devices:
        yield VmGenId(id="vmgenid")
    if not ram.shared:
        yield Plain(option="-incoming", value="defer")
    if ram.uuid is not None:
        yield Plain(option="-uuid", value=ram.uuid)
