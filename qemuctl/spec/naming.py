"""The name of a VM, checked; and plain values changed inside a spec's text."""

from __future__ import annotations

from typing import Any

import yaml
from yaml import events

from qemuctl.errors import SpecError
from qemuctl.spec.document import LOADER
from qemuctl.spec.load import parse_spec
from qemuctl.spec.model import Spec
from qemuctl.spec.scalars import check_name
from qemuctl.spec.text import dump


def validate_name(name: str) -> str:
    """The name itself. Raises SpecError where `check_name` raises ValueError."""
    try:
        return check_name(name)
    except ValueError as error:
        raise SpecError(str(error)) from error


def renamed(text: str, spec: Spec, name: str) -> str:
    """The YAML ``text`` of ``spec`` with another name, its comments kept.

    Where the name cannot be changed in place, the YAML of ``spec`` is written
    anew. Raises SpecError for a bad name.
    """
    return changed(text, spec, "name", validate_name(name))


def changed(text: str, spec: Spec, key: str, value: str) -> str:
    """The YAML ``text`` of ``spec`` with another plain value of one top-level key.

    Its comments are kept, and a key that is not there yet is added, unless
    that would change more than it should: then the YAML of ``spec`` is written
    anew.
    """
    # Quoted if an older YAML reader would take the text for a number or switch.
    quoted = yaml.safe_dump(
        [value], default_flow_style=True, width=1_000_000, allow_unicode=True
    )
    quoted = quoted.strip()[1:-1]
    try:
        try:
            start, end = _span(text, key)
            written = f"{text[:start]}{quoted}{text[end:]}"
        except LookupError:
            line_end = "" if not text or text.endswith("\n") else "\n"
            written = f"{text}{line_end}{key}: {quoted}\n"
        wanted = parse_spec(text).model_copy(update={key: value})
        if parse_spec(written) == wanted:
            return written
    except (SpecError, yaml.YAMLError):
        pass
    return dump(spec.model_copy(update={key: value}))


def _span(text: str, wanted: str) -> tuple[int, int]:
    """Where the value of a top-level key starts and ends, in characters.

    Raises LookupError when there is no such plain value.
    """
    depth, key = 0, None
    stream: Any = yaml.parse(text, Loader=LOADER)
    for event in stream:
        if isinstance(event, events.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, events.CollectionStartEvent):
            depth, key = depth + 1, None
        elif depth == 1 and isinstance(event, events.ScalarEvent):
            start, end = event.start_mark, event.end_mark
            if key == wanted and start is not None and end is not None:
                return start.index, end.index
            key = event.value if key is None else None
        elif depth == 1:
            key = None
    raise LookupError(wanted)
