"""Reading the event file that QEMU itself writes, with or without a reader.

QEMU has a monitor whose chardev is a pair of files: it reads one
qmp_capabilities from the first and from then on writes every event to the
second (see the event monitor in `cmdline`). So nothing is missed while no
Python runs, and waiting for an event occupies no monitor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from qemuctl import bounded
from qemuctl.qmp.events import Event

# A longer line than any event of QEMU.
_LONGEST = 64 * 1024

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
        content = bounded.content(path)
    except OSError:
        return
    yield from filter(None, map(parse, content.splitlines()))


def end(path: Path) -> int:
    """Where the last whole line ends, in bytes: later events are behind it. 0 without
    a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            first = file.seek(max(bounded.begin(file.fileno(), 0), size - _LONGEST))
            return first + file.read().rfind(b"\n") + 1
    except OSError:
        return 0
