"""Dataclasses as QAPI objects, and as options that take JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import Any, ClassVar

from qemuctl.structs import Struct


def to_qapi(value: Any) -> dict[str, Any]:
    """The QAPI object of a dataclass: None is left out, ``_`` becomes ``-``.

    Nested dataclasses, sequences, mappings and paths are converted too.
    """
    return {
        field.name.replace("_", "-"): _convert(member)
        for field in fields(value)
        if (member := getattr(value, field.name)) is not None
    }


def _convert(value: Any) -> Any:
    if is_dataclass(value):
        return to_qapi(value)
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {key: _convert(member) for key, member in value.items()}
    if isinstance(value, (tuple, list)):
        return [_convert(member) for member in value]
    return value


class JsonOption(Struct):
    """An option whose value is JSON, so that nothing in it needs escaping."""

    OPTION: ClassVar[str]

    def arguments(self) -> list[str]:
        """The option and its value."""
        # Unicode stays readable; json escapes what a line could not hold.
        text = json.dumps(to_qapi(self), ensure_ascii=False, separators=(",", ":"))
        return [self.OPTION, text]
