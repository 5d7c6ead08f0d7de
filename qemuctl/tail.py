"""Text of others that is safe to print, and the end of a log as such."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

# The longest part of a sequence that is waited for: a guest that begins one and
# never ends it must not be able to hide, or to have us keep, all that follows.
_LONGEST = 4096
_MANY = f"{{0,{_LONGEST}}}+"
# ECMA-48: CSI sequences, OSC strings, and other escapes, such as `ESC ( B`.
_ESCAPE = re.compile(
    rf"\x1b(?:\[[0-?]{_MANY}[ -/]{_MANY}[@-~]"
    rf"|\][^\x07\x1b]{_MANY}(?:\x07|\x1b\\)|[ -/]{_MANY}[0-~])"
)
# The beginning of one, at the end of what has come so far.
_BEGUN = re.compile(
    rf"\x1b(?:\[[0-?]{_MANY}[ -/]{_MANY}|\][^\x07\x1b]{_MANY}\x1b?+|[ -/]{_MANY})\Z"
)


# All that moves a cursor or turns text around, and halves of characters: C0 but for
# tab and newline, DEL, C1, the separators and directions of Unicode, surrogates.
_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e"
    "\\u2066-\\u2069\\ud800-\\udfff]"
)


def escaped(text: str) -> str:
    """Text with ``\\x1b`` and the like in the place of what a terminal would obey."""
    return _UNSAFE.sub(lambda found: _code(found[0]), text.replace("\r\n", "\n"))


def json_escaped(text: str) -> str:
    """JSON text with the same characters escaped as JSON has it."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def tail(path: Path, lines: int = 20, *, longest: int = 64 * 1024) -> str:
    """The last lines of a file as text; empty when there is none.

    Escape sequences and other control characters are left out: a guest must
    not be able to move the cursor of whoever reads an error message.
    """
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - longest))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(plain(text).splitlines()[-lines:])


def plain(text: str) -> str:
    """Text without terminal escape sequences and control characters."""
    return _printable(_ESCAPE.sub("", text))


def _printable(text: str) -> str:
    """The characters that print, and those that part lines and columns."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(
        line
        if line.isprintable()
        else "".join(c for c in line if c == "\t" or c.isprintable())
        for line in text.split("\n")
    )


class Plain:
    """What `plain` makes of a text whose bytes come in parts, cut anywhere.

    All parts together give what the whole gives: characters, sequences and line
    ends may begin in one part and end in another.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""
        self._returned = False  # the last character was a carriage return

    def feed(self, data: bytes, *, last: bool = False) -> str:
        """The text of the next part; ``last`` when no other follows it."""
        text = self._begun + self._decoder.decode(data, last)
        begun = _BEGUN.search(text, max(0, len(text) - 2 * _LONGEST - 3))
        end = len(text) if last or begun is None else begun.start()
        self._begun = text[end:]
        text = _ESCAPE.sub("", text[:end])
        if not text:
            return ""
        # A carriage return has become a newline already, when it came.
        skipped = self._returned and text.startswith("\n")
        self._returned = text.endswith("\r")
        return _printable(text[1:] if skipped else text)
