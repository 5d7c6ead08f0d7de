"""Reading the event file that QEMU itself writes, with or without a reader.

QEMU has a monitor whose chardev is a pair of files: it reads one
qmp_capabilities from the first and from then on writes every event to the
second (see the event monitor in `cmdline`). So nothing is missed while no
Python runs, and waiting for an event occupies no monitor.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path

from qemuctl.qmp.events import Event

LIMIT = 4 * 1024 * 1024
_BLOCK = 4096
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

NEGOTIATION = '{"execute": "qmp_capabilities"}\n'


def prepare(reads: Path, writes: Path) -> None:
    """Makes both files for a QEMU that is about to start."""
    reads.write_text(NEGOTIATION)
    writes.write_bytes(b"")


def parse(line: bytes) -> Event | None:
    """The event in one line of the file; None when it holds none."""
    try:
        return Event.parse(json.loads(line))
    except ValueError:
        return None


def past(path: Path) -> Iterator[Event]:
    """The events so far, oldest first; none when there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(start(path))
            content = file.read()
    except OSError:
        return
    yield from filter(None, map(parse, content.splitlines()))


def start(path: Path) -> int:
    """Where the file's content begins, in bytes; not 0 once it was trimmed."""
    with path.open("rb") as file:
        try:
            return os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError:  # an empty file has no data
            return 0


def trim(path: Path, most: int = LIMIT) -> None:
    """Gives the room of old events back when the file takes more than ``most``
    bytes; the younger half stays.

    QEMU goes on writing at its own offset, so the file is not shortened: a
    hole is made at its beginning (fallocate(2)). A guest that causes events
    without end can thus not fill the disk while anybody looks now and then.
    """
    try:
        with path.open("r+b") as file:
            status = os.fstat(file.fileno())
            if status.st_blocks * 512 <= most:
                return
            length = (status.st_size - most // 2) // _BLOCK * _BLOCK
            ctypes.CDLL(None).fallocate(
                file.fileno(), _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(length)
            )
    except OSError:  # not there, or a file system without holes
        return
