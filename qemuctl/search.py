"""Searching a log that grows for a regular expression.

Each part of the log is searched once, with the end of the one before it, and
other tasks run in between: a guest that writes without end must neither slow the
search down nor keep the program from hearing of a time-out or a signal.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from pathlib import Path

from qemuctl.follow import follow
from qemuctl.tail import Plain

OVERLAP = 8 * 1024
"""The longest match that is certain to be found, in characters."""
# A pattern such as `.*x` takes the square of a line's length, in one go.
_PART = 8 * 1024
# Seconds of silence after which an unfinished line counts as a line: a prompt.
_QUIET = 0.3


class Search:
    """A search in text that comes in parts; ``^`` and ``$`` are a line's ends."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern, re.MULTILINE)
        # Begins with a character that has been searched, for `^` and `\b`.
        self._text = "\n"
        self.perhaps: str | None = None
        """What matches if the last line ends where it ends now."""

    async def feed(self, text: str) -> str | None:
        """The text that matched, once the next part is there. Other tasks run
        meanwhile."""
        if not text:
            return None
        self.perhaps = None
        searched = len(self._text)
        self._text += text
        while searched < len(self._text):
            start = max(1, searched - OVERLAP)
            searched = min(searched + _PART, len(self._text))
            if (found := self._look(start, searched)) is not None:
                return found
            await asyncio.sleep(0)
        self._text = self._text[-OVERLAP - 1 :]
        return None

    def _look(self, start: int, end: int) -> str | None:
        match = self._pattern.search(self._text, start, end)
        if match is None or match.end() < end:
            return match and match.group()
        # `$` and `\b` match where we stop. They must do so with what follows, too,
        # which may be part of the same word or not.
        last = end == len(self._text)
        texts = [f"{self._text}{more}" for more in ".a"] if last else [self._text]
        if all(self._pattern.match(text, match.start()) for text in texts):
            return match.group()
        if last:
            self.perhaps = match.group()
        return None


async def search(path: Path, pattern: str) -> str:
    """Waits for a regular expression in a log, what is there already included, as
    text without escape sequences; gives what matched.

    ``^`` and ``$`` are the beginning and the end of a line; the last line ends
    where the log does, when nothing has come for a moment. A match has at most
    `OVERLAP` characters. Raises re.error.
    """
    looking, plain = Search(pattern), Plain()
    async with aclosing(follow(path)) as chunks:
        while True:
            coming = asyncio.ensure_future(anext(chunks))
            quiet = _QUIET if looking.perhaps is not None else None
            try:
                await asyncio.wait({coming}, timeout=quiet)
                if not coming.done() and looking.perhaps is not None:
                    return looking.perhaps
                found = await looking.feed(plain.feed(await coming))
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            if found is not None:
                return found
