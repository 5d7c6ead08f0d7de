"""Reading files as they grow, and guests' text without its tricks."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from qemuctl import follow

TIMEOUT = 60.0


@pytest.fixture(params=["inotify", "no instance left", "no watch left"], autouse=True)
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with inotify, and where the kernel has none to give."""

    def no_instance() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def no_watch(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if request.param == "no instance left":
        monkeypatch.setattr(follow, "Inotify", no_instance)
    elif request.param == "no watch left":
        monkeypatch.setattr(follow.Inotify, "add_watch", no_watch)
    return str(request.param)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def read(chunks: AsyncGenerator[bytes, None], size: int) -> bytes:
    """The next ``size`` bytes."""
    data = b""
    async with asyncio.timeout(TIMEOUT):
        while len(data) < size:
            data += await anext(chunks)
    return data


async def test_what_is_there_comes_first_and_then_what_is_appended(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one")
    async with aclosing(follow.follow(path)) as chunks:
        assert await read(chunks, 3) == b"one"
        waiting = asyncio.create_task(read(chunks, 3))
        await asyncio.sleep(0)
        append(path, b"two")
        assert await waiting == b"two"


async def test_it_begins_at_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"onetwo")
    async with aclosing(follow.follow(path, offset=3)) as chunks:
        assert await read(chunks, 3) == b"two"


async def test_a_file_that_became_shorter_is_read_from_its_start(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a long first text")
    async with aclosing(follow.follow(path)) as chunks:
        await read(chunks, 17)
        waiting = asyncio.create_task(read(chunks, 5))
        await asyncio.sleep(0)
        path.write_bytes(b"again")
        assert await waiting == b"again"


async def test_lines_are_whole_however_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    async with aclosing(follow.lines(path)) as lines, asyncio.timeout(TIMEOUT):
        assert await anext(lines) == b"one"
        waiting = asyncio.create_task(anext(lines))
        await asyncio.sleep(0)
        append(path, b"o\n\nfour\n")
        assert await waiting == b"two"
        assert [await anext(lines) for _ in range(2)] == [b"", b"four"]


async def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await anext(follow.follow(tmp_path / "log"))


async def test_the_first_wanted_item_ends_and_closes_the_stream() -> None:
    closed = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            for number in range(10):
                yield number
        finally:
            closed.append(True)

    assert await follow.first(numbers(), lambda n: n > 3) == 4
    assert closed == [True]


async def test_another_failure_of_inotify_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(follow, "Inotify", broken)
    path = tmp_path / "log"
    path.touch()
    with pytest.raises(PermissionError):
        await anext(follow.follow(path))
