"""The spec seen from outside: its JSON schema, and an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qemuctl.spec.base import Model
from qemuctl.spec.model import Spec
from qemuctl.typed.schema import object_schema

_FORWARD = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {
            "type": "string",
            "pattern": r"^(((tcp|udp):)?([0-9.]+:)?[0-9]*:)?[0-9]+$",
            "examples": ["8080:80", "127.0.0.1:2222:22", ":80"],
        },
    ]
}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a spec file, short notations included."""
    parts: dict[str, Any] = {}
    schema = object_schema(Spec, parts)
    for model in Model.__subclasses__():
        key, name = model.plain_key, model.__name__
        if key is not None and name in parts:
            plain = parts[name]["properties"][key]
            _widen(parts, name, {k: v for k, v in plain.items() if k != "default"})
    _widen(parts, "Forward", _FORWARD)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": parts,
        **schema,
    }


def _widen(parts: dict[str, Any], name: str, plain: dict[str, Any]) -> None:
    """Lets ``plain`` stand wherever the part ``name`` may."""
    parts[f"{name}Keys"] = parts[name]
    parts[name] = {"anyOf": [plain, {"$ref": f"#/$defs/{name}Keys"}]}


def example() -> str:
    """A commented YAML file: every field, its default, and a word why."""
    return Path(__file__).with_name("example.yaml").read_text(encoding="utf-8")
