"""Plain data, as JSON has it, from objects."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from qemuctl.structs import Struct
from qemuctl.typed.marks import Written
from qemuctl.typed.read import Key, keys


def written(value: Any) -> Any:
    """The data that `read` makes the value from again."""
    return _written(value, lean=False)


def written_fields(
    of: Struct, *, lean: bool = False, exclude: Collection[str] = ()
) -> dict[str, Any]:
    """The same of an object, without the fields in ``exclude`` and, ``lean``, without
    what is as by default, in its parts too."""
    found = {}
    for name, key in keys(type(of)).items():
        value = getattr(of, name)
        if name in exclude or (lean and not key.required and value == key.default):
            continue
        mark = _mark(key)
        if mark is not None and value is not None:
            found[name] = mark.text(value)
        else:
            found[name] = _written(value, lean=lean)
    return found


def _written(value: Any, *, lean: bool) -> Any:
    if isinstance(value, Struct):
        return written_fields(value, lean=lean)
    if isinstance(value, Mapping):
        return {key: _written(item, lean=lean) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(item, lean=lean) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value) if isinstance(value, Path) else value


@cache
def _mark(key: Key) -> Written | None:
    return _in(key.annotation)


def _in(annotation: Any) -> Written | None:
    """The mark in an annotation such as ``Size | None``."""
    for argument in get_args(annotation):
        if isinstance(argument, Written):
            return argument
        if (found := _in(argument)) is not None:
            return found
    return None
