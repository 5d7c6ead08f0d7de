"""Reading the event file that QEMU itself writes, with or without a reader.

QEMU has a monitor whose chardev is a pair of files: it reads one
qmp_capabilities from the first and from then on writes every event to the
second (see the event monitor in `cmdline`). So nothing is missed while no
Python runs, and waiting for an event occupies no monitor.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from qemuctl.follow import first, lines
from qemuctl.qmp.events import Event

NEGOTIATION = '{"execute": "qmp_capabilities"}\n'


def prepare(reads: Path, writes: Path) -> None:
    """Makes both files for a QEMU that is about to start."""
    reads.write_text(NEGOTIATION)
    writes.write_bytes(b"")


def _parse(line: bytes) -> Event | None:
    try:
        return Event.parse(json.loads(line))
    except ValueError:
        return None


def past(path: Path) -> Iterator[Event]:
    """The events so far, oldest first; none when there is no file."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    yield from filter(None, map(_parse, content.splitlines()))


async def stream(path: Path) -> AsyncGenerator[Event, None]:
    """The events so far and all that come, oldest first, without end."""
    async with aclosing(lines(path)) as every:
        async for line in every:
            event = _parse(line)
            if event is not None:
                yield event


def upcoming(path: Path, name: str) -> Coroutine[Any, Any, Event]:
    """Waits for the next event of a name. What counts as next is settled by
    this call, not by the first await: call, then cause the event."""
    seen = sum(1 for _ in past(path))
    number = itertools.count()
    return first(
        stream(path), lambda event: next(number) >= seen and event.name == name
    )
