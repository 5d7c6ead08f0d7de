"""Reading what others send, of which nobody knows how much it is.

Guests, other hosts, servers and files may send without an end, or what takes many
times its size when it is unpacked. Each reader here has a bound.
"""

from __future__ import annotations

import json
import re
import zlib
from asyncio import IncompleteReadError, LimitOverrunError, StreamReader
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

WORDS = 64 * 1024
"""Bytes of what a program says on standard error that are kept, the last ones."""
_PART = 64 * 1024
# In JSON, a list of nothing takes many times the room of its text.
_ITEMS = 200_000
# One that does not end goes to the end of the text, so that no text takes long.
_STRING = re.compile(rb'"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


@dataclass
class Allowance:
    """Counts bytes, of which ``most`` may come."""

    most: int
    taken: int = 0

    def take(self, size: int) -> None:
        """Raises ValueError when more has come."""
        self.taken += size
        if self.taken > self.most:
            raise ValueError(f"more than {self.most} bytes came")


class Last:
    """The last ``most`` bytes of a stream, as far as it has been read."""

    def __init__(self, most: int = WORDS) -> None:
        self._most = most
        self.kept = b""

    async def follow(self, reader: StreamReader) -> bytes:
        """Reads a stream to its end; gives what is kept."""
        while part := await reader.read(_PART):
            self.kept = (self.kept + part)[-self._most :] if self._most else b""
        return self.kept


async def last_of(reader: StreamReader, most: int = WORDS) -> bytes:
    """Reads a stream to its end and gives its last ``most`` bytes."""
    return await Last(most).follow(reader)


async def at_most(parts: AsyncIterable[bytes], most: int) -> bytes:
    """All parts, of which ``most`` bytes may come. Raises ValueError for more."""
    whole, room = bytearray(), Allowance(most)
    async for part in parts:
        room.take(len(part))
        whole += part
    return bytes(whole)


class Lines:
    """The lines of a stream. A reader that is cancelled loses nothing."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self._held = bytearray()

    async def next(self, most: int, *, end_only: bool = False) -> bytes:
        """The next line with its newline, which the last one may lack; empty at the
        end. With ``end_only`` only the last ``most`` bytes of a longer line.

        Raises ValueError for a longer one, of which the start is then lost; OSError.
        """
        while True:
            part, is_whole = await self._part()
            self._held += part
            if len(self._held) > most:
                if not end_only:
                    self._held.clear()
                    raise ValueError(f"a line of more than {most} bytes")
                del self._held[:-most]
            if is_whole:
                line = bytes(self._held)
                self._held.clear()
                return line

    async def _part(self) -> tuple[bytes, bool]:
        """More of a line, and whether it is all of it."""
        try:
            return await self._reader.readuntil(b"\n"), True
        except IncompleteReadError as error:
            return error.partial, True
        except LimitOverrunError as error:
            # That many bytes are there, so that this does not wait.
            return await self._reader.readexactly(error.consumed), False


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object in a text. Raises ValueError when there is none, or one that
    is nested too deep or of very many items."""
    if _items(text) > _ITEMS and _items(_STRING.sub(b"", text)) > _ITEMS:
        raise ValueError("too many items")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _items(text: bytes) -> int:
    return sum(map(text.count, (b",", b"[", b"{")))


def inflated(data: bytes, most: int) -> bytes:
    """What gzip or zlib made ``data`` of, at most ``most`` bytes. Raises ValueError
    for more, and for what is neither."""
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        whole = unpacking.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError("it is not packed by gzip, or damaged") from error
    Allowance(most).take(len(whole))
    if not unpacking.eof:
        raise ValueError("it is cut off")
    return whole
