"""The file that a saved machine lies in: what it is, and its state as QEMU wrote it.

::

    qemuctl state 1 00012288 SHA-256\\n   format, size of the head, sum of the text
    {"name": "web", …}                   text, up to the end of the head
    stream                               RAM and devices, plain or zstd

The head is written last: a file without one is not whole. Nothing of it is
believed; sizes and sums are held against the file, and the spec is parsed as any.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import TypeAdapter, ValidationError

from qemuctl.cmdline.shape import Shape
from qemuctl.errors import SpecError, StateFileError
from qemuctl.image.qemu_img import check_readable
from qemuctl.spec import Spec, parse_spec

_FORMAT = 1
_MAGIC = b"qemuctl state "
_PAGE = 4096
_LARGEST_HEAD = 4 * 1024 * 1024
_BLOCK = 1024 * 1024
_ZEROS = bytes(_BLOCK)
# Seconds between looks at a file that grows.
_LOOK = 0.01
_NO_SUM = "0" * 64

Compression = Literal["zstd"]


@dataclass(frozen=True, kw_only=True)
class DiskThen:
    """A disk's file when the machine was saved: its size in bytes and the time of its
    last change in nanoseconds. What has another by now has been written to."""

    id: str
    path: str
    size: int
    mtime_ns: int

    def problem(self) -> str | None:
        """Why the file is not what it was then."""
        try:
            status = Path(self.path).stat()
        except OSError as error:
            return f"its disk {self.id} cannot be read: {error.strerror}: {self.path}"
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            return f"its disk {self.id} has been changed since: {self.path}"
        return None


@dataclass(frozen=True, kw_only=True)
class About:
    """What a saved machine is: all but its state.

    ``spec`` is the text of what ran, ``configured`` that of the VM's own file;
    ``topology`` is what QEMU had; ``ballooned`` bytes are what the balloon was
    asked to leave. ``size`` and ``sha256`` are of the stream in the file.
    """

    name: str
    saved_at: float
    qemu: str
    paused: bool
    spec: str
    configured: str
    shape: Shape
    topology: dict[str, str]
    disks: tuple[DiskThen, ...] = ()
    ballooned: int | None = None
    compression: Compression | None = None
    mapped: bool = False
    size: int = 0
    sha256: str = _NO_SUM

    def ran(self) -> Spec:
        """The spec of the machine that was saved. Raises SpecError."""
        return parse_spec(self.spec, source=f"the saved spec of {self.name}")


_ABOUT = TypeAdapter(About)


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """A file that is whole, as far as its head tells."""

    path: Path
    about: About
    start: int = field(default=0)

    def open(self) -> BinaryIO:
        """The file, at the beginning of the stream."""
        file = self.path.open("rb")
        file.seek(self.start)
        return file

    def verify(self, tick: Callable[[], None] = lambda: None) -> None:
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
            version, size, sum_ = line.removeprefix(_MAGIC).decode().split()
            if int(version) != _FORMAT:
                raise StateFileError(
                    f"written by a later version of qemuctl: {path}",
                    hint="a newer qemuctl reads it",
                )
            start = int(size)
            if not _PAGE <= start <= _LARGEST_HEAD:
                raise ValueError
            text = file.read(start - len(line))
        except ValueError as error:
            raise damaged(path, "its first line makes no sense") from error
        if hashlib.sha256(text).hexdigest() != sum_:
            raise damaged(path, "the checksum of its head is wrong")
        try:
            about = _ABOUT.validate_json(text)
            about.ran()
        except (ValidationError, SpecError) as error:
            raise damaged(path, f"its head makes no sense: {error}") from error
        if os.fstat(file.fileno()).st_size != start + about.size:
            raise damaged(path, "it has been cut short, or something was added")
    return StateFile(path=path, about=about, start=start)


def begin(file: BinaryIO, about: About) -> int:
    """Leaves room for the head of a file that is about to be written; gives where the
    stream begins."""
    start = -(-(len(_text(about)) + 256) // _PAGE) * _PAGE
    file.truncate(start)
    file.seek(start)
    return start


def finish(file: BinaryIO, about: About, start: int, sha256: str) -> About:
    """Writes the head of a file whose stream is there, and has it all on the disk."""
    size = os.fstat(file.fileno()).st_size - start
    about = replace(about, size=size, sha256=sha256, saved_at=time.time())
    text = _text(about)
    line = b"%s%d %08d %s\n" % (_MAGIC, _FORMAT, start, _NO_SUM.encode())
    text = text.ljust(start - len(line))
    sum_ = hashlib.sha256(text).hexdigest().encode()
    os.pwrite(file.fileno(), line.replace(_NO_SUM.encode(), sum_) + text, 0)
    os.fsync(file.fileno())
    return about


def _text(about: About) -> bytes:
    return _ABOUT.dump_json(about, indent=1)


def digest(
    file: BinaryIO,
    *,
    grows: Callable[[], bool] = lambda: False,
    tick: Callable[[], None] = lambda: None,
) -> str:
    """SHA-256 of what follows in a file, blocks of zeros left out but counted, so
    that holes cost nothing; waits for what is to come for as long as it ``grows``."""
    found = hashlib.sha256()
    start, index = file.tell(), 0
    while True:
        tick()
        growing = grows()
        there = os.fstat(file.fileno()).st_size - start - index * _BLOCK
        if there < _BLOCK and growing:
            time.sleep(_LOOK)
            continue
        block = os.pread(file.fileno(), _BLOCK, start + index * _BLOCK)
        if not block:
            return found.hexdigest()
        if block != _ZEROS:
            found.update(b"%d:" % index)
            found.update(block)
        index += 1


def disks_then(paths: dict[str, Path]) -> tuple[DiskThen, ...]:
    """What the files of disks are now, by the disks' ids."""
    found = []
    for id_, path in paths.items():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append(
                DiskThen(
                    id=id_, path=str(path), size=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                )
            )  # fmt: skip
    return tuple(found)


def as_text(about: About) -> dict[str, Any]:
    """What is worth telling of it."""
    return {
        "name": about.name,
        "saved_at": about.saved_at,
        "qemu": about.qemu,
        "machine": about.shape.machine,
        "size": about.size,
        "compression": about.compression,
    }
