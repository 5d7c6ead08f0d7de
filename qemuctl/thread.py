"""Blocking work in a thread that can be called off, and work that cannot.

`asyncio.to_thread` leaves the thread to itself when its caller is cancelled,
and the program then cannot end before it does. Here the work is handed a
function that it calls now and then, and which raises once nobody wants the
result any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from qemuctl.waiting import called_off_by

T = TypeVar("T")
Tick = Callable[[], None]


class CalledOff(Exception):
    """Ends the work from inside; never seen outside of the thread."""


async def in_thread(work: Callable[[Tick], T]) -> T:
    """The result of ``work``, which calls the function that it gets often; so does
    what waits for a lock in it (`lock_for_a_moment`).

    When the caller is cancelled, the work has ended before it hears of it.
    """
    over = threading.Event()

    def tick() -> None:
        if over.is_set():
            raise CalledOff

    def begun() -> T:
        called_off_by(over.is_set)
        return work(tick)

    running = asyncio.ensure_future(asyncio.to_thread(begun))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        over.set()
        while not running.done():
            # However often it is cancelled: the work is still using its files.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # CalledOff, which nobody needs to hear of
        raise


async def in_full(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which comes to its end however often the caller is
    cancelled: half of it would be worse than either. It must end by itself.

    An error of it is told rather than that the caller was cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error from None
        raise


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Future[T]]:
    """Has ``work`` go on beside the block, which awaits its result; it has ended when
    the block has."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
