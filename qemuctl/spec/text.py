"""The YAML text of a `Spec`."""

from __future__ import annotations

from typing import Any

import yaml

from qemuctl.spec.base import Model
from qemuctl.spec.model import Spec
from qemuctl.spec.network import Forward


def dump(spec: Spec) -> str:
    """The YAML of ``spec``: what differs from the defaults, in the model's order.

    `parse_spec` of it gives ``spec`` again.
    """
    # The dumper quotes what an older YAML reader would take for a number or switch.
    return yaml.dump(
        _plain(spec),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=1_000_000,
    )


class _Dumper(yaml.SafeDumper):
    """Safe, and with escapes for what a reader would take for the end of a line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Left to itself PyYAML writes U+0085 as it is, and reads it as a newline.
    lines = value.split("\n")
    style = None if all(map(str.isprintable, lines)) else '"'
    if style is None and len(lines) > 1:
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _plain(value: Any) -> Any:
    if isinstance(value, Forward):
        return value.notation
    if isinstance(value, Model):
        return _plain_model(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _plain_model(model: Model) -> Any:
    """The fields that differ, or the one value that stands for the whole part."""
    # Sizes become text here, and nested parts are taken from the model itself.
    texts = model.model_dump(exclude_defaults=True)
    data = {}
    for name in type(model).model_fields:
        if name in texts:
            value = getattr(model, name)
            nested = isinstance(value, (Model, tuple))
            data[name] = _plain(value) if nested else texts[name]
    key = model.plain_key
    if key is not None and not data.keys() - {key}:
        return data.get(key, getattr(model, key))
    return data
