"""A line on a terminal that tells what takes a while, and is gone at the end.

Loading a library for it would take longer than most commands run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

# Seconds after which it is shown, and between looks at the clock.
_SHOW_AFTER = 0.2
_EVERY = 0.5
_USUAL_COLUMNS = 80


class _Line:
    """The last line of a terminal, drawn by a thread of its own: who takes a while need
    not do so in an event loop."""

    def __init__(self, terminal: TextIO, text: str) -> None:
        self.text = text
        self._terminal = terminal
        self._begun = time.monotonic()
        self._shown = 0
        # Whether what others have written ends with a line's end.
        self._free = True
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = _SHOW_AFTER
        with contextlib.suppress(OSError, ValueError):  # the terminal has gone
            while not self._over.wait(pause):
                with self._lock:
                    self._erase()
                    if self._free and not self._over.is_set():
                        self._draw()
                pause = _EVERY

    def _draw(self) -> None:
        seconds = time.monotonic() - self._begun
        # A longer one would wrap, and could not be erased.
        line = f"{self.text} … {seconds:.0f} s"[: _columns(self._terminal) - 1]
        self._terminal.write(line)
        self._terminal.flush()
        self._shown = len(line)

    def _erase(self) -> None:
        if self._shown:
            self._terminal.write("\r" + " " * self._shown + "\r")
            self._terminal.flush()
            self._shown = 0

    def write(self, stream: TextIO, text: str) -> int:
        """Writes what others say in its place; it comes back below that."""
        with self._lock:
            self._erase()
            written = stream.write(text)
            stream.flush()
            if text:
                self._free = text.endswith("\n")
            return written

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError, ValueError):
            self._erase()


def _columns(terminal: TextIO) -> int:
    with contextlib.suppress(OSError, ValueError):
        # 0 where nobody has said.
        return os.get_terminal_size(terminal.fileno()).columns or _USUAL_COLUMNS
    return _USUAL_COLUMNS


class _Above:
    """A stream to the same terminal."""

    def __init__(self, stream: TextIO, line: _Line) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        return self._line.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def spinning(text: str) -> Iterator[Callable[[str], None]]:
    """Shows a text, and for how long, on the terminal that standard error is; gives a
    function that changes the text. What is printed meanwhile goes above it."""
    before = sys.stdout, sys.stderr
    line = _Line(sys.stderr, text)

    def change(changed: str) -> None:
        line.text = changed

    sys.stderr = cast(TextIO, _Above(sys.stderr, line))
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout = cast(TextIO, _Above(sys.stdout, line))
    try:
        yield change
    finally:
        sys.stdout, sys.stderr = before
        line.end()
