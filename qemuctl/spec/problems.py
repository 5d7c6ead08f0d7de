"""What pydantic found wrong, in words for whoever wrote the spec.

Pydantic names fields as the model has them; a user who wrote ``memory: 12Q``
knows no ``memory.size``. So each problem is told at the deepest place that
is really there in what was written.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qemuctl.errors import SpecError
from qemuctl.spec.document import Location, dotted
from qemuctl.structs import Struct

SHOWN_MAX = 20
_NO_VALUE = "write a value, or leave the key out"

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2

# Without these words pydantic's message would speak of parsing and instances.
_WORDS = {
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_parsing_size": "not a whole number",
    "int_from_float": "not a whole number",
    "finite_number": "not a whole number",
    "bool_type": "not true or false",
    "bool_parsing": "not true or false",
    "string_type": "not text",
    "string_unicode": "not valid Unicode",
    "tuple_type": "not a list",
    "dict_type": "not `key: value` lines",
    "model_type": "not `key: value` lines",
    "model_attributes_type": "not `key: value` lines",
    "mapping_type": "not `key: value` lines",
    "invalid_key": "a key must be plain text",
}


class Problem(Struct, kw_only=False):
    """One thing that is wrong.

    ``at`` leads to the field; ``place`` to what the message is printed with,
    which for an unknown key is the part that holds it.
    """

    at: Location
    place: Location
    text: str
    hint: str | None = None
    line: int | None = None


def nearest(word: str, known: Sequence[str]) -> str | None:
    """``did you mean memory?``, if one of ``known`` is close to ``word``."""
    folded = word.lower().replace("-", "_")
    close = difflib.get_close_matches(folded, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None


def show(value: Any) -> str:
    """A value for a message, never long."""
    if isinstance(value, BaseModel):
        return type(value).__name__
    if isinstance(value, bool):
        return str(value).lower()
    return _SHORT.repr(value)


def spec_error(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    *,
    source: str | None = None,
    lines: Mapping[Location, int] | None = None,
) -> SpecError:
    """All that is wrong with ``data``, one problem a line, as one SpecError.

    Its ``line``, ``key`` and ``hint`` are those of the first problem.
    """
    found = [
        _problem(detail, model, data, lines or {})
        for detail in error.errors(include_url=False)
    ]
    found.sort(key=lambda problem: problem.line or 0)
    return join(found, source)


def join(found: Sequence[Problem], source: str | None) -> SpecError:
    """One SpecError of one or more problems."""
    first, *others = found
    text = [first.text]
    for other in others[: SHOWN_MAX - 1]:
        aside = f" ({other.hint})" if other.hint else ""
        text.append(f"{_single(other, source)}{aside}")
    if len(found) > SHOWN_MAX:
        text.append(f"and {len(found) - SHOWN_MAX} more")
    result = SpecError(
        "\n".join(text),
        path=source,
        line=first.line,
        key=dotted(first.place) or None,
        hint=first.hint,
    )
    result.key = dotted(first.at) or None
    return result


def _single(problem: Problem, source: str | None) -> SpecError:
    return SpecError(
        problem.text,
        path=source,
        line=problem.line,
        key=dotted(problem.place) or None,
    )


def _problem(
    detail: ErrorDetails,
    model: type[BaseModel],
    data: Any,
    lines: Mapping[Location, int],
) -> Problem:
    loc, kind = detail["loc"], detail["type"]
    at = _as_written(loc, data)
    line = _line_of(at, lines)
    if kind == "extra_forbidden":
        hint = nearest(str(loc[-1]), _keys_at(model, loc[:-1]))
        return Problem(at, at[:-1], f"unknown key: {loc[-1]}", hint, line)
    if kind == "missing":
        return Problem(at, at, "missing", "every VM needs it: write it down", line)
    if detail["input"] is None:
        return Problem(at, at, "no value", _NO_VALUE, line)
    text, hint = _say(detail)
    return Problem(at, at, text, hint, line)


def _say(detail: ErrorDetails) -> tuple[str, str | None]:
    """The message, and a hint, for one wrong value."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]), None
    if kind == "literal_error":
        expected = context["expected"].replace("'", "")
        known = expected.replace(" or ", ", ").split(", ")
        hint = nearest(value, known) if isinstance(value, str) else None
        return f"unknown value: {show(value)} (write {expected})", hint
    limits = {
        "greater_than_equal": ("ge", "must be at least {}: {}"),
        "less_than_equal": ("le", "must be at most {}: {}"),
    }
    if kind in limits:
        name, pattern = limits[kind]
        return pattern.format(context[name], show(value)), None
    if kind in ("string_too_short", "too_short"):
        return "empty", _NO_VALUE
    if kind in ("string_too_long", "too_long"):
        limit = context["max_length"]
        return f"too long: {len(value)} characters, {limit} at most", None
    words = _WORDS.get(kind, detail["msg"][:1].lower() + detail["msg"][1:])
    hint = f"write it as an item of a list: - {value}" if kind == "tuple_type" else None
    return f"{words}: {show(value)}", hint if isinstance(value, str) else None


def _as_written(loc: Location, data: Any) -> Location:
    """As much of ``loc`` as stands in ``data``, and a last key that is missing.

    A part that was written as one plain value has no keys of its own.
    """
    at: list[str | int] = []
    for part in loc:
        if isinstance(data, Mapping):
            at.append(part)
            if part not in data:
                break
            data = data[part]
        elif isinstance(data, (list, tuple)) and isinstance(part, int):
            at.append(part)
            data = data[part] if part < len(data) else None
        else:
            break
    return tuple(at)


def _line_of(at: Location, lines: Mapping[Location, int]) -> int | None:
    for end in range(len(at), 0, -1):
        if at[:end] in lines:
            return lines[at[:end]]
    return None


def _keys_at(model: type[BaseModel], loc: Location) -> list[str]:
    """The keys that are known in the part of ``model`` that ``loc`` leads to."""
    for part in loc:
        if isinstance(part, str):
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as ``tuple[Disk, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _model_in(argument)) is not None:
            return found
    return None
