"""What is kept of what others send without an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import QemuctlError
from qemuctl.migration.channel import Channel, ChannelLost
from qemuctl.migration.destination import parse_destination
from qemuctl.migration.link import opened
from qemuctl.peers import Lines, at_most, json_object, last_of
from qemuctl.units import MIB
from tests.hostile import memory


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


def reader_of(data: bytes, limit: int = 64 * 1024) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=limit)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_lines_are_whole_whatever_the_size_of_the_buffer(
    parts: list[bytes], limit: int
) -> None:
    async def read() -> list[bytes]:
        lines, found = Lines(reader_of(data, limit)), []
        while line := await lines.next(10_000):
            found.append(line)
        return found

    data = b"\n".join(parts)
    assert asyncio.run(read()) == data.splitlines(keepends=True) or b"\r" in data


async def test_a_line_that_is_too_long_is_an_error_or_only_its_end() -> None:
    data = b"x" * 300_000 + b"end\nnext\n"
    with pytest.raises(ValueError, match="more than 1000"):
        await Lines(reader_of(data)).next(1000)
    lines = Lines(reader_of(data))
    assert await lines.next(4, end_only=True) == b"end\n"
    assert await lines.next(5) == b"next\n"


async def test_a_reader_that_was_called_off_loses_nothing() -> None:
    reader = asyncio.StreamReader(limit=4)
    lines = Lines(reader)
    reader.feed_data(b"half of ")
    waiting = asyncio.create_task(lines.next(100))
    for _ in range(5):
        await asyncio.sleep(0)
    assert lines._held == b"half of "
    waiting.cancel()
    await asyncio.wait({waiting})
    reader.feed_data(b"it\n")
    assert await lines.next(100) == b"half of it\n"


@pytest.mark.parametrize(
    "text", [b"[]", b"", b"{", b"[" * 10**6, b'{"a":[' + b"[]," * 10**6 + b"0]}"]
)
def test_what_is_no_object_or_takes_much_room_is_refused(text: bytes) -> None:
    with memory(8 * MIB), pytest.raises(ValueError):
        json_object(text)


def test_a_text_with_many_commas_is_one_item() -> None:
    text = b'{"a": "' + b',[{\\"' * 10**5 + b'"}'
    assert len(json_object(text)["a"]) == 4 * 10**5


@pytest.mark.parametrize("text", [b'"\\' * 10**6, b"," * 10**6 + b'"' + b'\\"' * 10**6])
def test_no_text_takes_long_to_count(text: bytes) -> None:
    with pytest.raises(ValueError):
        json_object(text)


@pytest.mark.parametrize(
    "said",
    [b"x" * 64 * MIB, b"[" * 10**6 + b"\n", b'{"a":[' + b"[]," * 10**6 + b"0]}\n"],
)
async def test_the_other_side_of_a_migration_cannot_fill_our_memory(
    said: bytes,
) -> None:
    async def feed() -> None:
        for start in range(0, len(said), MIB):
            reader.feed_data(said[start : start + MIB])
            await asyncio.sleep(0)
        reader.feed_eof()

    reader = asyncio.StreamReader()
    feeding = asyncio.create_task(feed())
    with memory(64 * MIB), pytest.raises(ChannelLost, match="makes no sense"):
        await Channel(reader, cast(asyncio.StreamWriter, None)).receive()
    feeding.cancel()
    await asyncio.wait({feeding})


async def test_of_what_ssh_says_the_last_words_are_kept(
    tmp_path: Path, bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are on one line of 64 MiB, with which ssh must not get stuck."""
    ssh = tmp_path / "ssh"
    ssh.write_text(
        "#!/bin/sh\nhead -c 67108864 /dev/zero | tr '\\0' x >&2\n"
        "printf 'no way' >&2\nexit 255\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("QEMUCTL_SSH", str(ssh))
    with memory(8 * MIB), pytest.raises(QemuctlError, match="no way") as caught:
        async with opened(parse_destination("ssh://other"), tmp_path / "s"):
            pass
    assert len(caught.value.message) < 5000
