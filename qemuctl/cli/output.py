"""What every command prints with: data on stdout, words on stderr.

Escape sequences in either are made visible here, and nowhere else: errors and tables
hold what guests, servers, peers and files say.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qemuctl.tail import escaped, json_escaped
from qemuctl.waiting import SAY_AFTER as SAY_AFTER

_as_objects = False


def speak_json(wanted: bool = True) -> bool:
    """From now on, what goes to stderr is JSON objects, one a line."""
    global _as_objects
    _as_objects = _as_objects or wanted
    return wanted


def _say_object(fields: Mapping[str, object]) -> None:
    import json

    text = json.dumps(fields, ensure_ascii=False, default=str)
    print(json_escaped(text), file=sys.stderr)


def print_json(value: Any) -> None:
    """One JSON document, for programs."""
    import json

    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    print(json_escaped(text))


def tell(facts: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    """What a command has done: facts for programs, else words for people."""
    if as_json:
        print_json(facts)
    else:
        note(words)


def print_text(text: object, *, flush: bool = False) -> None:
    """A line of data that may hold what others have written, safe for a terminal."""
    print(escaped(str(text)), flush=flush)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns. Drawing tables by a library would take `ls` longer to
    load than to run."""
    cells = [
        [escaped(str(cell)) if cell not in (None, "") else "-" for cell in r]
        for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in (head, *cells):
        line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
        print(line.rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """``name: value`` lines, aligned; what has no value is left out."""
    shown = {name: value for name, value in fields.items() if value not in (None, "")}
    width = max(map(len, shown), default=0) + 1
    for name, value in shown.items():
        first, *more = escaped(str(value)).splitlines() or [""]
        print(f"{name + ':':<{width}}  {first}")
        for line in more:
            print(f"{'':<{width}}  {line}")


def note(text: str) -> None:
    """A word to the user that is not data; what others have written in it is safe."""
    if _as_objects:
        _say_object({"note": text})
        return
    print(escaped(text), file=sys.stderr)


def report(
    message: str,
    hint: str | None = None,
    *,
    kind: str = "QemuctlError",
    status: int = 1,
) -> None:
    """An error, as every command shows it: ``kind`` is its class, ``status`` the exit
    status that it leads to."""
    if _as_objects:
        fields = {"error": message, "hint": hint, "kind": kind, "status": status}
        _say_object(fields)
        return
    note(f"error: {message}")
    if hint:
        note(f"\nhint: {hint}")


def confirmed(question: str) -> bool:
    """Asks on the terminal; an empty answer, or none, is no."""
    answers = {"y": True, "yes": True, "n": False, "no": False, "": False}
    while True:
        print(f"{escaped(question)} [y/N]: ", end="", file=sys.stderr, flush=True)
        answer = answers.get(sys.stdin.readline().strip().lower())
        if answer is not None:
            return answer


@contextlib.contextmanager
def working(
    text: str, *, say_after: float | None = None
) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal what takes more than a moment, and for how long; gone at the
    end.

    Gives a function that changes the text. In a pipe one line tells it when
    ``say_after`` seconds have passed, and without that nothing does: there only
    `note` speaks.
    """
    if sys.stderr.isatty():
        from qemuctl.cli.spinner import spinning

        with spinning(escaped(text)) as change:
            yield lambda changed: change(escaped(changed))
        return
    words = text

    def change_words(changed: str) -> None:
        nonlocal words
        words = changed

    with contextlib.ExitStack() as stack:
        if say_after is not None:
            # A thread, for not everybody who waits does so in an event loop.
            timer = threading.Timer(say_after, lambda: note(f"{words} …"))
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        yield change_words


def building(text: str) -> Callable[[str], None]:
    """Progress of an image's build: a line for each stage, in a pipe too, for
    it happens once and takes long."""
    begun = False

    def show(stage: str) -> None:
        nonlocal begun
        if not begun:
            note(text)
            begun = True
        note(f"  {stage}")

    return show
