"""Waiting for events in the file that QEMU writes (see `eventlog`)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from qemuctl.follow import first, lines
from qemuctl.qmp.eventlog import parse, past, start
from qemuctl.qmp.events import Event


async def stream(path: Path) -> AsyncGenerator[Event, None]:
    """The events so far and all that come, oldest first, without end."""
    async with aclosing(lines(path, offset=start(path))) as every:
        async for line in every:
            event = parse(line)
            if event is not None:
                yield event


def upcoming(path: Path, name: str) -> Coroutine[Any, Any, Event]:
    """Waits for the next event of a name. What counts as next is settled by
    this call, not by the first await: call, then cause the event."""
    seen = sum(1 for _ in past(path))
    return after(seen, path, lambda event: event.name == name)


def after(
    seen: int, path: Path, wanted: Callable[[Event], bool]
) -> Coroutine[Any, Any, Event]:
    """Waits for a wanted event that is not among the first ``seen``."""
    number = itertools.count()
    return first(stream(path), lambda event: next(number) >= seen and wanted(event))
