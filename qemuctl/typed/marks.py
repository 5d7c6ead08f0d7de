"""What an annotation says beside its type: ``Annotated[str, Check(check_name)]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field
from typing import Any, NamedTuple


class Check(NamedTuple):
    """``check`` of what was read is the value; it raises ValueError."""

    check: Callable[[Any], Any]


class Before(NamedTuple):
    """``change`` of what was written is read; it raises ValueError."""

    change: Callable[[Any], Any]


class Written(NamedTuple):
    """The value is written as ``text`` of it, and read from that again."""

    text: Callable[[Any], str]


class Schema:
    """The JSON schema, in place of that of the type."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema


class Limits(NamedTuple):
    """The least and the most that a number can be, and a text or list be long."""

    ge: int | None = None
    le: int | None = None
    min_length: int | None = None
    max_length: int | None = None


def setting(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    description: str | None = None,
    ge: int | None = None,
    le: int | None = None,
    max_length: int | None = None,
    check: Callable[[Any, Mapping[str, Any]], None] | None = None,
) -> Any:
    """A field, as `dataclasses.field`, with what is to be known of it.

    Without a default it must be given. ``check`` is called with a value that was given
    and with the fields before it, without those that are wrong; it raises ValueError.
    """
    known = {
        "description": description,
        "limits": Limits(ge, le, None, max_length),
        "check": check,
    }
    given = {"default": default, "default_factory": default_factory}
    return field(**given, metadata=known)
