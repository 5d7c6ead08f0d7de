"""The port of this host that leads to a guest's ssh server, and who answers there."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence

PORT = 22
# `Record.forwards`, those of TCP.
_FORWARD = re.compile(r"(?P<address>[0-9.]+):(?P<port>[0-9]+)->22")
# A connection that QEMU accepted while the guest was deaf may stay deaf.
_ONE_TRY = 5.0
_PAUSE_FIRST, _PAUSE_MOST = 0.05, 0.5
_BANNER_MOST = 64 * 1024


def forward_of(forwards: Sequence[str]) -> tuple[str, int] | None:
    """Where to connect to for a guest's ssh server; None where nothing leads there."""
    found = next(filter(None, map(_FORWARD.fullmatch, forwards)), None)
    if found is None:
        return None
    # 0.0.0.0 is for listening on all addresses, not for connecting to one.
    address = found["address"]
    return "127.0.0.1" if address == "0.0.0.0" else address, int(found["port"])  # noqa: S104


async def until_greets(address: str, port: int) -> None:
    """Asks until there is a banner: QEMU's user network accepts a connection before
    the guest does, and no event tells that the guest listens."""
    pause = _PAUSE_FIRST
    while True:
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(_ONE_TRY):
                if await _banner(address, port):
                    return
        await asyncio.sleep(pause)
        pause = min(pause * 2, _PAUSE_MOST)


async def reachable(address: str, port: int, timeout: float = 1.0) -> bool:
    """Whether a machine has this address: one that answers, with a refusal or not,
    within ``timeout`` seconds."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    return True


async def _banner(address: str, port: int) -> bool:
    """Whether an ssh server is there (RFC 4253, 4.2: lines may come before it)."""
    reader, writer = await asyncio.open_connection(address, port, limit=_BANNER_MOST)
    try:
        while line := await reader.readline():
            if line.startswith(b"SSH-"):
                return True
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
