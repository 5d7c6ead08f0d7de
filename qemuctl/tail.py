"""The end of a log as text that is safe to print."""

from __future__ import annotations

import re
from pathlib import Path

# ECMA-48: CSI sequences, OSC strings, and other escapes, such as `ESC ( B`.
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])"
)


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
