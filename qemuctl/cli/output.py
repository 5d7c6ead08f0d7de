"""What every command prints with: data on stdout, words on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON document, for programs."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns. Drawing tables by a library would take `ls` longer to
    load than to run."""
    cells = [[str(cell) if cell not in (None, "") else "-" for cell in r] for r in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in (head, *cells):
        line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
        print(line.rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """``name: value`` lines, aligned; what has no value is left out."""
    shown = {name: value for name, value in fields.items() if value not in (None, "")}
    width = max(map(len, shown), default=0) + 1
    for name, value in shown.items():
        first, *more = str(value).splitlines() or [""]
        print(f"{name + ':':<{width}}  {first}")
        for line in more:
            print(f"{'':<{width}}  {line}")


def note(text: str) -> None:
    """A word to the user that is not data."""
    print(text, file=sys.stderr)


def report(message: str, hint: str | None = None) -> None:
    """An error, as every command shows it."""
    note(f"error: {message}")
    if hint:
        note("")
        first, *more = hint.splitlines()
        note("\n".join([f"hint: {first}", *more]))


@contextlib.contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal that something takes a while; gone at the end.

    Gives a function that changes the text. In a pipe nothing is shown: there
    only `note` speaks.
    """
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield lambda changed: status.update(changed)


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
