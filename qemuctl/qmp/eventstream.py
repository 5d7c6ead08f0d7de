"""Waiting for events in the file that QEMU writes (see `eventlog`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from qemuctl.follow import first, lines
from qemuctl.qmp.eventlog import end, parse
from qemuctl.qmp.events import Event


async def stream(path: Path, offset: int = 0) -> AsyncGenerator[Event, None]:
    """The events from an offset in the file on, those so far and all that come,
    oldest first, without end."""
    async with aclosing(lines(path, offset=offset)) as every:
        async for line in every:
            event = parse(line)
            if event is not None:
                yield event


def upcoming(path: Path, name: str) -> Coroutine[Any, Any, Event]:
    """Waits for the next event of a name. What counts as next is settled by
    this call, not by the first await: call, then cause the event."""
    return after(end(path), path, lambda event: event.name == name)


def after(
    seen: int, path: Path, wanted: Callable[[Event], bool]
) -> Coroutine[Any, Any, Event]:
    """Waits for a wanted event behind an offset of the file (`eventlog.end`)."""
    return first(stream(path, seen), wanted)
