"""Commands that print on and on: a line at a time, until nobody reads."""

from __future__ import annotations

import asyncio
import os
import select
import stat
import sys
from collections.abc import Coroutine
from typing import Any

from qemuctl.descriptors import readable
from qemuctl.tail import json_escaped


def print_line(value: Any) -> None:
    """One JSON document in one line, there at once for whoever reads it."""
    import json

    text = json.dumps(value, ensure_ascii=False, default=str)
    print(json_escaped(text), flush=True)


async def until_unread(work: Coroutine[Any, Any, None]) -> None:
    """Does ``work`` until its end, or until the reader of our output has gone.

    Without it, a command that has nothing to print at the moment would not
    learn for hours that `head` has had enough. Raises BrokenPipeError then.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_unread())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        else:
            gone.result()
            raise BrokenPipeError
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _unread() -> None:
    """Waits until the pipe that is our output has no reader any more."""
    try:
        fd = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except (OSError, ValueError):
        is_pipe = False
    if not is_pipe:
        await asyncio.Event().wait()
    # An epoll of its own, which asks for nothing: an error is always told.
    with select.epoll() as poll:
        poll.register(fd, 0)
        await readable(poll.fileno())
