"""The JSON schema (draft 2020-12) of what `read` takes."""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from qemuctl.structs import Struct
from qemuctl.typed.marks import Limits, Schema
from qemuctl.typed.read import Key, keys
from qemuctl.typed.write import written

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, bool: {"type": "boolean"},
    types.NoneType: {"type": "null"}, Any: {},
}  # fmt: skip
_NUMBERS = {"ge": "minimum", "le": "maximum"}
_TEXTS = {"min_length": "minLength", "max_length": "maxLength"}


def object_schema(of: type[Struct], parts: dict[str, Any]) -> dict[str, Any]:
    """The schema of a class, which refers to those of its parts in ``parts``, by their
    names; they are added."""
    known = keys(of)
    found = {
        "type": "object",
        "description": inspect.getdoc(of),
        "properties": {name: _property(key, parts) for name, key in known.items()},
        "required": [name for name, key in known.items() if key.required],
        "additionalProperties": False,
    }
    return {name: value for name, value in found.items() if value != []}


def _property(key: Key, parts: dict[str, Any]) -> dict[str, Any]:
    schema = _limited(_schema(key.annotation, parts), key.limits)
    if key.description is not None:
        schema["description"] = key.description
    if not key.required:
        schema["default"] = written(key.default)
    return schema


def _schema(annotation: Any, parts: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _marked(annotation, parts)
    if origin is None:
        return dict(
            _PLAIN[annotation] if annotation in _PLAIN else _part(annotation, parts)
        )
    if origin in (Union, types.UnionType):
        return _union([_schema(each, parts) for each in arguments])
    if origin is Literal:
        one = {"const": arguments[0]} if len(arguments) == 1 else None
        return {"type": "string", **(one or {"enum": list(arguments)})}
    if origin is dict:
        return {"type": "object", "additionalProperties": True}
    return {"type": "array", "items": _schema(arguments[0], parts)}


def _part(of: type[Struct], parts: dict[str, Any]) -> dict[str, Any]:
    if of.__name__ not in parts:
        parts[of.__name__] = {}  # keeps its place before its own parts
        parts[of.__name__] = object_schema(of, parts)
    return {"$ref": f"#/$defs/{of.__name__}"}


def _union(arms: list[dict[str, Any]]) -> dict[str, Any]:
    flat: list[dict[str, Any]] = []
    for arm in arms:
        flat += arm["anyOf"] if arm.keys() == {"anyOf"} else [arm]
    return {"anyOf": flat}


def _marked(annotation: Any, parts: dict[str, Any]) -> dict[str, Any]:
    inner, *marks = get_args(annotation)
    own = [dict(mark.schema) for mark in marks if isinstance(mark, Schema)]
    schema = own[0] if own else _schema(inner, parts)
    for mark in marks:
        if isinstance(mark, Limits):
            schema = _limited(schema, mark)
    return schema


def _limited(schema: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """With the limits where they hold: for the numbers, or the texts, of a choice."""
    if "anyOf" in schema:
        return {"anyOf": [_limited(arm, limits) for arm in schema["anyOf"]]}
    words = {"integer": _NUMBERS, "string": _TEXTS}.get(schema.get("type", ""), {})
    given = limits._asdict()
    own = {word: given[name] for name, word in words.items() if given[name] is not None}
    return {**schema, **own}
