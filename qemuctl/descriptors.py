"""Waiting for descriptors, in an event loop."""

from __future__ import annotations

import asyncio


async def readable(fd: int) -> None:
    """Waits until a descriptor can be read (a pidfd: until the process ended)."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
