"""The file that a saved machine lies in: what it is, and its state as QEMU wrote it.

::

    qemuctl state 1 5120 SHA-256\\n   format; size of what follows, and its sum
    {"name": "web", …}
    (from 1 MiB on)                  RAM and devices, as QEMU wrote them, or zstd

The head is written last: a file without one is not whole. Nothing of it is
believed; sizes and sums are held against the file, and the spec is parsed as any.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from qemuctl.cmdline.shape import Shape
from qemuctl.errors import SpecError, StateFileError
from qemuctl.image.qemu_img import check_readable
from qemuctl.qmp import Session
from qemuctl.qmp.migration import MigrateSetParameters, set_capabilities
from qemuctl.spec import Spec, parse_spec
from qemuctl.structs import Struct
from qemuctl.thread import Tick
from qemuctl.typed.marks import Limits
from qemuctl.typed.read import read
from qemuctl.typed.write import written

_FORMAT = 1
_MAGIC = b"qemuctl state "
# Where the stream begins; QEMU has a liking for whole MiB.
START = 1024 * 1024
_BLOCK = 1024 * 1024
_ZEROS = bytes(_BLOCK)
# Pages have places of their own in the file, which several threads fill.
MAPPED = ("mapped-ram", "multifd")
_CHANNELS = 4
# Bytes a second, for a guest that stands still anyway: more than there can be.
_UNLIMITED = 1 << 50
# Seconds between looks at a file that grows.
_LOOK = 0.01

Compression = Literal["zstd"]


class DiskThen(Struct):
    """A disk's file when the machine was saved: its size in bytes and the time of its
    last change in nanoseconds. What has another by now has been written to.

    ``path`` is relative where the file was the VM's own: it lay in the VM's folder.
    """

    id: str
    path: str
    size: int
    mtime_ns: int

    @property
    def own(self) -> bool:
        """Whether the file was made for the VM."""
        return not Path(self.path).is_absolute()

    def file(self, folder: Path) -> Path:
        """The file, for a VM in this folder."""
        return folder / self.path

    def as_in(self, folder: Path) -> DiskThen:
        """The disk of the same name that a VM in another folder has now."""
        return _disk(self.id, self.path, self.file(folder))

    def problem(self, folder: Path) -> str | None:
        """Why the file is not what it was then, for a VM in this folder."""
        path = self.file(folder)
        try:
            status = path.stat()
        except OSError as error:
            return f"its disk {self.id} cannot be read: {error.strerror}: {path}"
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            return f"its disk {self.id} has been changed since: {path}"
        return None


class About(Struct):
    """What a saved machine is: all but its state.

    ``spec`` is the text of what ran, where files of the VM's own are relative to its
    folder, ``home``; ``devices`` are the drivers of what QEMU had, by the ids;
    ``ballooned`` bytes are what the balloon was asked to leave. ``mapped`` tells
    that each page of RAM has a place of its own in the stream, of which ``size`` (in
    bytes) and ``sha256`` are.
    """

    name: str
    home: str
    saved_at: float
    qemu: str
    paused: bool
    spec: str
    shape: Shape
    devices: dict[str, str]
    disks: tuple[DiskThen, ...] = ()
    ballooned: int | None = None
    compression: Compression | None = None
    mapped: bool = False
    size: Annotated[int, Limits(ge=0)] = 0
    sha256: str = ""

    def ran(self, folder: Path) -> Spec:
        """The spec of the machine that was saved, for a VM in this folder. Raises
        SpecError."""
        return parse_spec(
            self.spec, source=f"the saved spec of {self.name}", base=folder
        )

    def problems(self, folder: Path) -> list[str]:
        """Which disks are not as they were, for a VM in this folder."""
        every = (disk.problem(folder) for disk in self.disks)
        return [problem for problem in every if problem is not None]


class StateFile(Struct):
    """A file that is whole, as far as its head tells."""

    path: Path
    about: About
    head_sha256: str

    def open(self) -> BinaryIO:
        """The file, at the beginning of the stream."""
        file = self.path.open("rb")
        file.seek(START)
        return file

    def verify(self, tick: Tick) -> None:
        """Reads all of the stream. Raises StateFileError where it is not what was
        written."""
        with self.open() as file:
            if digest(file, tick=tick) != self.about.sha256:
                raise damaged(self.path, "the checksum of its state is wrong")


def damaged(path: Path, reason: str) -> StateFileError:
    """The error for a file that is not what was written."""
    return StateFileError(f"the saved state is damaged: {path}: {reason}")


def read_state(path: Path) -> StateFile:
    """What a file says that it is; its stream is not read.

    Raises StateFileError for one that is none, damaged, or cut short; ImageError for
    one that cannot be read.
    """
    check_readable(path, "the saved state")
    with path.open("rb") as file:
        line = file.readline(120)
        if not line.startswith(_MAGIC):
            raise StateFileError(f"not a saved machine, or not whole: {path}")
        try:
            version, size, sum_ = line.removeprefix(_MAGIC).decode("ascii").split()
            if int(version) != _FORMAT:
                raise StateFileError(
                    f"written by a later version of qemuctl: {path}",
                    hint="a newer qemuctl reads it",
                )
            if not size.isdecimal():  # a negative one would have all of it read
                raise ValueError(size)
            text = file.read(min(int(size), START))
        except ValueError as error:
            raise damaged(path, "its first line makes no sense") from error
        if hashlib.sha256(text).hexdigest() != sum_:
            raise damaged(path, "the checksum of its head is wrong")
        try:
            about = read(About, json.loads(text))
            about.ran(path.parent)
        except (ValueError, RecursionError, SpecError) as error:
            raise damaged(path, f"its head makes no sense: {error}") from error
        if os.fstat(file.fileno()).st_size != START + about.size:
            raise damaged(path, "it has been cut short, or something was added")
    return StateFile(path=path, about=about, head_sha256=sum_)


async def prepare_stream(session: Session, *, mapped: bool) -> None:
    """Has QEMU write or read a stream of this kind; the same on both sides. Raises
    MigrationFailed for one that it does not know."""
    channels = _CHANNELS if mapped else None
    limits = MigrateSetParameters(max_bandwidth=_UNLIMITED, multifd_channels=channels)
    await asyncio.gather(
        set_capabilities(session, *(MAPPED if mapped else ())),
        session.execute(limits),
    )


def begin(file: BinaryIO) -> None:
    """Leaves room for the head of a file that is about to be written."""
    file.truncate(START)
    file.seek(START)


def finish(file: BinaryIO, about: About, sha256: str) -> About:
    """Writes the head of a file whose stream is there."""
    size = os.fstat(file.fileno()).st_size - START
    about = replace(about, size=size, sha256=sha256)
    text = json.dumps(written(about), indent=1).encode()
    sum_ = hashlib.sha256(text).hexdigest()
    head = _MAGIC + f"{_FORMAT} {len(text)} {sum_}\n".encode() + text
    if len(head) > START:
        raise StateFileError(f"a machine of too many devices: {about.name}")
    if os.pwrite(file.fileno(), head, 0) != len(head):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return about


def digest(
    file: BinaryIO,
    *,
    grows: Callable[[], bool] = lambda: False,
    tick: Tick = lambda: None,
) -> str:
    """SHA-256 of what follows in a file, blocks of zeros left out but counted, so
    that holes cost nothing; waits for what is to come for as long as it ``grows``."""
    found, buffer = hashlib.sha256(), bytearray(_BLOCK)
    start, index = file.tell(), 0
    while True:
        tick()
        growing = grows()
        there = os.fstat(file.fileno()).st_size - start - index * _BLOCK
        if growing and there < _BLOCK:
            # An event for each write would cost more than this look.
            time.sleep(_LOOK)
            continue
        if not growing:
            index = max(index, _after_hole(file, start + index * _BLOCK, start))
        size = os.preadv(file.fileno(), [buffer], start + index * _BLOCK)
        if not size:
            return found.hexdigest()
        if size < _BLOCK or buffer != _ZEROS:
            found.update(b"%d:" % index)
            found.update(memoryview(buffer)[:size])
        index += 1


def _after_hole(file: BinaryIO, position: int, start: int) -> int:
    """The first block from ``position`` on that is not all hole."""
    try:
        data = os.lseek(file.fileno(), position, os.SEEK_DATA)
    except OSError:  # ENXIO: no data follows
        data = os.fstat(file.fileno()).st_size
    return (data - start) // _BLOCK


def disks_then(files: dict[str, Path], folder: Path) -> tuple[DiskThen, ...]:
    """What the files of disks are now, by the disks' ids, for a VM in this folder."""
    return tuple(_disk(id_, within(folder, path), path) for id_, path in files.items())


def _disk(id_: str, path: str, file: Path) -> DiskThen:
    now = file.stat()
    return DiskThen(id=id_, path=path, size=now.st_size, mtime_ns=now.st_mtime_ns)


def within(folder: Path, path: Path) -> str:
    """A path as a VM's state has it: relative for what lies in the VM's folder."""
    inside = path.is_relative_to(folder)
    return str(path.relative_to(folder) if inside else path)
