"""What is kept of what others send without an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from qemuctl.peers import at_most, last_of


@pytest.mark.parametrize(
    ("most", "kept"), [(5, b"world"), (0, b""), (99, b"hello world")]
)
async def test_the_last_words_are_kept(most: int, kept: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"hello world")
    reader.feed_eof()
    assert await last_of(reader, most) == kept


async def test_more_than_may_come_is_an_error() -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10

    with pytest.raises(ValueError, match="more than 25"):
        await at_most(parts(), 25)


async def test_what_may_come_is_taken_whole() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"a", b"b"):
            yield part

    assert await at_most(parts(), 2) == b"ab"
