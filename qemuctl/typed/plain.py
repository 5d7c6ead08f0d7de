"""Readers of plain values: text, numbers, switches, lists.

Each takes what YAML and JSON have for it, also as text, and raises `Wrong` for all
else. In a spec every value is text at first (`qemuctl.spec.document`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qemuctl.typed.faults import Fault, Wrong, refused, show

Reader = Callable[[Any], Any]

_WHOLE = re.compile(r"\s*([+-]?[0-9]+(?:_[0-9]+)*)(?:\.0+)?\s*")
_DIGITS_MAX = 4300
_SWITCHES = dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True) | dict.fromkeys(
    ("0", "off", "f", "false", "n", "no"), False
)


def text(value: Any) -> str:
    """Text, in Python's own type."""
    if not isinstance(value, str):
        raise refused(value, f"not text: {show(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise refused(value, f"not valid Unicode: {show(value)}") from error
    return str(value)


def whole(value: Any) -> int:
    """A whole number, which true and false are not."""
    found: int | None = None
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        if match is not None and len(match[1]) <= _DIGITS_MAX:
            found = int(match[1])
    elif isinstance(value, float):
        found = int(value) if value.is_integer() else None
    elif isinstance(value, int) and not isinstance(value, bool):
        found = int(value)
    if found is None:
        raise refused(value, f"not a whole number: {show(value)}")
    return found


def number(value: Any) -> float:
    """A number, finite or not."""
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise refused(value, f"not a number: {show(value)}")


def switch(value: Any) -> bool:
    """True or false."""
    found = None
    if isinstance(value, str):
        found = _SWITCHES.get(value.lower())
    elif isinstance(value, (int, float)) and value in (0, 1):
        found = bool(value)
    if found is None:
        raise refused(value, f"not true or false: {show(value)}")
    return found


def path(value: Any) -> Path:
    """A path, also from text."""
    return value if isinstance(value, Path) else Path(text(value))


def anything(value: Any) -> Any:
    """The value itself."""
    return value


def nothing(value: Any) -> None:
    """None alone."""
    if value is not None:
        raise refused(value, f"not null: {show(value)}")


def one_of(options: tuple[str, ...]) -> Reader:
    """Reads one of these texts."""
    *others, last = options
    choice = f"{', '.join(others)} or {last}" if others else last

    def read(value: Any) -> str:
        if isinstance(value, str):
            for option in options:
                if option == value:
                    return option
        near = {"word": value, "known": options} if isinstance(value, str) else {}
        raise refused(value, f"unknown value: {show(value)} (write {choice})", **near)

    return read


def items(item: Reader, make: Callable[[list[Any]], Any]) -> Reader:
    """Reads a list; ``make`` makes what is kept of it."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            hint = f"write it as an item of a list: - {value}"
            raise refused(value, f"not a list: {show(value)}", hint=hint)
        if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
            raise refused(value, f"not a list: {show(value)}")
        return make(_each(enumerate(value), item))

    return read


def mapping(key: Reader, item: Reader) -> Reader:
    """Reads keys and values."""

    def read(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise refused(value, no_mapping(value))
        keys = _each(((each, each) for each in value), key)
        return dict(zip(keys, _each(value.items(), item), strict=True))

    return read


def no_mapping(value: Any) -> str:
    """What is said of a value that has no keys."""
    return f"not `key: value` lines: {show(value)}"


def either(readers: Sequence[Reader]) -> Reader:
    """Reads what the first of them takes; if none does, all say why."""

    def read(value: Any) -> Any:
        faults: list[Fault] = []
        for reader in readers:
            try:
                return reader(value)
            except Wrong as wrong:
                faults += wrong.faults
        raise Wrong(faults[:1] if value is None else faults)

    return read


def _each(pairs: Iterable[tuple[Any, Any]], reader: Reader) -> list[Any]:
    found, faults = [], []
    for place, value in pairs:
        try:
            found.append(reader(value))
        except Wrong as wrong:
            at = place if isinstance(place, (int, str)) else show(place)
            faults += [fault.below(at) for fault in wrong.faults]
    if faults:
        raise Wrong(faults)
    return found
