"""A guest's text on the user's terminal: its last lines, without its tricks."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qemuctl.tail import Plain, plain, tail

PRINTABLE = st.text(alphabet=string.ascii_letters + string.digits + " äß漢.,:")
SEQUENCES = st.sampled_from(
    [
        "\x1b[31m",
        "\x1b[2J",
        "\x1b[?25h",
        "\x1b[10;20H",
        "\x1b[1 q",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x1bc",
        "\x1b7",
        "\x1b(B",
        "\x1b%G",
        "\x00",
        "\x07",
        "\x08",
        "\x7f",
        "\x9b",
        "\u202e",
        "\u2028",
    ]
)


@given(st.text())
def test_nothing_that_could_drive_a_terminal_is_left(text: str) -> None:
    assert all(c in "\n\t" or c.isprintable() for c in plain(text))


@given(st.text())
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert plain(plain(text)) == plain(text)


@given(st.lists(st.tuples(PRINTABLE, SEQUENCES)))
def test_the_text_between_the_sequences_is_all_there(
    parts: list[tuple[str, str]],
) -> None:
    dirty = "".join(text + sequence for text, sequence in parts)
    assert plain(dirty) == "".join(text for text, _ in parts)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_becomes_a_newline(end: str) -> None:
    assert plain(f"one{end}two{end}") == "one\ntwo\n"


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {n}\n" for n in range(100)))
    assert tail(path, 2) == "line 98\nline 99"
    assert len(tail(path).splitlines()) == 20


def test_the_tail_of_no_file_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == ""


def test_the_tail_reads_only_the_end_of_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 1_000_000)
    assert tail(path, longest=1000) == "x" * 1000


def test_the_tail_has_no_sequences_and_no_broken_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\x1b[31mred\x1b[0m \xff\xfe\x1b]0;t\x07end\x00\n")
    assert tail(path) == "red \ufffd\ufffdend"


def in_parts(data: bytes, cuts: list[int]) -> str:
    """What a text gives whose bytes come in parts, cut at these places."""
    coming = Plain()
    ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    text = "".join(
        coming.feed(data[start:end])
        for start, end in zip([0, *ends], ends, strict=False)
    )
    return text + coming.feed(b"", last=True)


@example(["\x1b", "\x1b[31m", "0"], [])
@given(
    st.lists(
        SEQUENCES | PRINTABLE | st.sampled_from(["\r\n", "\r", "\n", "\x1b", "\x1b["])
    ),
    st.lists(st.integers(min_value=0)),
)
def test_parts_cut_anywhere_give_what_the_whole_gives(
    pieces: list[str], cuts: list[int]
) -> None:
    data = "".join(pieces).encode()
    assert in_parts(data, cuts) == plain(data.decode())


@given(st.binary(), st.lists(st.integers(min_value=0)))
def test_so_do_parts_of_what_is_no_text(data: bytes, cuts: list[int]) -> None:
    assert in_parts(data, cuts) == plain(data.decode(errors="replace"))


@pytest.mark.parametrize("begin", ["\x1b]", "\x1b[", "\x1b "])
def test_a_sequence_without_an_end_hides_nothing_for_long(begin: str) -> None:
    coming = Plain()
    text = begin + "1" * 10_000
    shown = "".join(
        coming.feed(text[i : i + 1000].encode()) for i in range(0, 10_002, 1000)
    )
    assert shown == plain(text)
    assert len(shown) > 9_990


def test_a_line_shows_when_its_carriage_return_has_come() -> None:
    coming = Plain()
    assert coming.feed(b"one\r") == "one\n"
    assert coming.feed(b"\x1b[0m") == ""
    assert coming.feed(b"\ntwo") == "two"
