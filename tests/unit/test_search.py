"""Searching a console's log while the guest writes to it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qemuctl.search import OVERLAP, Search, search

PATIENCE = 60.0


async def found(path: Path, pattern: str) -> str:
    async with asyncio.timeout(PATIENCE):
        return await search(path, pattern)


def log(folder: Path, data: bytes) -> Path:
    path = folder / "serial.log"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "pattern", "match"),
    [
        (b"a\r\nready\r\nb\r\n", "^ready$", "ready"),
        (b"a\nready", "^ready$", "ready"),
        (b"login: ", "^login: $", "login: "),
        (b"one\ntwo\n", "one\ntwo", "one\ntwo"),
        (b"\x1b[32mgr\xc3\xbcn\x1b[0m\n", "^gr.n$", "grün"),
        (b"x" * 300_000 + b"\nend\n", "^end$", "end"),
        (b"x" * 300_000 + b"end", "xend", "xend"),
        (b"a\n" * 100_000 + b"the\nend\n", "the\nend", "the\nend"),
    ],
)
async def test_it_finds(tmp_path: Path, data: bytes, pattern: str, match: str) -> None:
    assert await found(log(tmp_path, data), pattern) == match


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"not ready\n", "^ready"),
        (b"ready or not\n", "ready$"),
        # Where the search pauses is no line's end.
        (b"x" * (5 * OVERLAP) + b"\n", "^x{1,9000}$"),
        (b"a\n" * 3 * OVERLAP, "^$"),
    ],
)
async def test_it_does_not_find(tmp_path: Path, data: bytes, pattern: str) -> None:
    looking = Search(pattern)
    assert await looking.feed(data.decode()) is None
    assert (await looking.feed("more")) is None
    assert looking.perhaps is None


async def test_the_end_of_what_has_come_is_no_line_end_while_more_comes(
    tmp_path: Path,
) -> None:
    looking = Search("^ok$")
    assert await looking.feed("ok") is None
    assert looking.perhaps == "ok"
    assert await looking.feed("ay\n") is None
    assert looking.perhaps is None
    assert await looking.feed("ok\n") == "ok"


@example("ab ba", [2], r"\bab\b")
@example("abba", [2], r"\bab\b")
@given(
    st.text(alphabet="ab \n"), st.lists(st.integers(min_value=0)),
    st.sampled_from(["^a$", "b+", "^ab", "a$", "a\nb", r"\bab\b", "^$"]),
)  # fmt: skip
def test_a_text_in_parts_matches_where_the_whole_does(
    text: str, cuts: list[int], pattern: str
) -> None:
    ends = [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    async def look() -> str | None:
        looking = Search(pattern)
        for part in parts:
            if (match := await looking.feed(part)) is not None:
                return match
        return looking.perhaps

    whole = re.compile(pattern, re.MULTILINE).search("\n" + text, 1)
    assert (asyncio.run(look()) is None) == (whole is None or not text)


async def test_a_log_that_grows_without_end_does_not_keep_a_time_out_waiting(
    tmp_path: Path,
) -> None:
    """The writer is a task of the same loop: it writes only if the search lets it."""
    path = log(tmp_path, b"y\n" * 3_000_000)

    async def write() -> None:
        with path.open("ab") as file:
            while True:
                file.write(b"y\n" * 500_000)
                await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await search(path, "never")
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_a_line_without_end_does_not_either(tmp_path: Path) -> None:
    path = log(tmp_path, b"y" * 5_000_000)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await search(path, ".*x")


async def test_a_bad_pattern_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(re.error):
        await search(log(tmp_path, b""), "(")
