"""Text of others that is safe to print, and the end of a log as such."""

from __future__ import annotations

import re
from pathlib import Path

# ECMA-48: CSI sequences, OSC strings, and other escapes, such as `ESC ( B`.
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])"
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
    text = _ESCAPE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c in "\n\t" or c.isprintable())
