"""Reading what others send, of which nobody knows how much it is."""

from __future__ import annotations

from asyncio import StreamReader
from collections.abc import AsyncIterable

WORDS = 64 * 1024
"""Bytes of what a program says on standard error that are kept, the last ones."""
_PART = 64 * 1024


async def last_of(reader: StreamReader, most: int = WORDS) -> bytes:
    """Reads a stream to its end and gives its last ``most`` bytes."""
    kept = b""
    while part := await reader.read(_PART):
        kept = (kept + part)[-most:] if most else b""
    return kept


async def at_most(parts: AsyncIterable[bytes], most: int) -> bytes:
    """All parts, of which ``most`` bytes may come. Raises ValueError for more."""
    whole = bytearray()
    async for part in parts:
        if len(whole) + len(part) > most:
            raise ValueError(f"more than {most} bytes came")
        whole += part
    return bytes(whole)
