"""Waiting for files that grow, woken by the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

from asyncinotify import Inotify, Mask

from qemuctl.bounded import begin

T = TypeVar("T")

_CHUNK = 256 * 1024
# inotify instances and watches are scarce (fs.inotify.max_user_*): without one
# there is no event to wait for, and we look this often, in seconds.
_LOOK_EVERY = 0.1
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOSYS)


async def follow(
    path: Path, *, offset: int = 0, until: Awaitable[object] | None = None
) -> AsyncGenerator[bytes, None]:
    """The bytes of a file from ``offset`` on, as they are appended.

    Goes on until ``until`` is done and all that was written by then has been
    given; without it, for ever. A file that became shorter is read again from
    its start; what a log has given back (see `bounded`) is left out. The file must
    exist.
    """
    end = asyncio.ensure_future(until) if until is not None else None
    try:
        with path.open("rb", buffering=0) as file, _watch(path) as inotify:
            place = offset
            while True:
                # What is written by whoever never stops is not waited for.
                last = end is not None and end.done()
                size = path.stat().st_size if last else None
                while True:
                    # What was there may have given way to a hole, also just now.
                    place = file.seek(begin(file.fileno(), place))
                    if not (chunk := file.read(_CHUNK)):
                        break
                    if begin(file.fileno(), place) != place:
                        continue
                    place += len(chunk)
                    yield chunk
                    if size is not None and place >= size:
                        return
                    # A file that grows as fast as it is read is no reason to keep
                    # time-outs and signals waiting.
                    await asyncio.sleep(0)
                if last:
                    return
                if path.stat().st_size < place:
                    place = 0
                    continue
                await _changed(inotify, end)
    finally:
        if end is not None:
            end.cancel()


async def _changed(inotify: Inotify | None, end: asyncio.Future[object] | None) -> None:
    """Waits until the file may have grown, or ``end``."""
    waiting: Coroutine[None, None, object] = (
        asyncio.sleep(_LOOK_EVERY) if inotify is None else inotify.get()
    )
    if end is None:
        await waiting
        return
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def lines(
    path: Path, *, offset: int = 0, until: Awaitable[object] | None = None
) -> AsyncGenerator[bytes, None]:
    """Whole lines of a growing file from ``offset`` on, without their ends."""
    rest = b""
    async with aclosing(follow(path, offset=offset, until=until)) as chunks:
        async for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line


async def first(items: AsyncGenerator[T, None], wanted: Callable[[T], bool]) -> T:
    """The first item that is wanted, of a stream without end, which it closes."""
    async with aclosing(items):
        async for item in items:
            if wanted(item):
                return item
    raise AssertionError("the stream ended")


@contextlib.contextmanager
def _watch(path: Path) -> Iterator[Inotify | None]:
    with contextlib.ExitStack() as stack:
        inotify = None
        try:
            inotify = stack.enter_context(Inotify())
            inotify.add_watch(path, Mask.MODIFY)
        except OSError as error:
            if error.errno not in SCARCE:
                raise
            inotify = None
        yield inotify
