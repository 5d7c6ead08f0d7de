"""YAML text to plain data, with the line of every key.

Every value stays the text that the user wrote, `Plain` where it is without quotes, and
only an empty one or ``null`` becomes None: the model knows which field is a number or a
switch, and `typed` gives what is passed on the types that YAML has.
YAML's own guesses would turn the port forward ``2222:22`` into 133342 (base
60), the name ``123`` into a number and the name ``no`` into False.

The tree is built from the parser's events, not by PyYAML's composer, which
recurses without a bound: a file of brackets could exhaust the stack, and one
of aliases the memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml import events

from qemuctl.errors import SpecError
from qemuctl.paths import blocking_folder
from qemuctl.typed.faults import Location, dotted

SIZE_MAX = 1024**2
"""The largest file that is read, in bytes."""

NODES_MAX = 20_000
"""The most values in a file, each alias counted for all that it stands for."""

DEPTH_MAX = 32
_NULLS = {"", "~", "null", "Null", "NULL"}
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Safe, and in C where PyYAML was built with libyaml."""


class Plain(str):
    """A value that is written without quotes, so that YAML may take it for a number or
    a switch."""

    __slots__ = ()


_YAML_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float")}


def typed(value: Any) -> Any:
    """Data as YAML has it, for other programs: plain numbers and switches are such.

    Not so the forms that only a YAML 1.1 reader takes for a number or a date, where
    people mean text: ``52:54:00:12:34:56`` (base 60), ``2024-01-01``.
    """
    if isinstance(value, dict):
        return {str(key): typed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [typed(inner) for inner in value]
    if not isinstance(value, Plain):
        return value
    text = str(value)
    loader: Any = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if tag not in _YAML_TYPES or ":" in text:
        return text
    try:
        found = loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:  # more digits than Python takes
        return text
    return text if isinstance(found, float) and not math.isfinite(found) else found


@dataclass
class Document:
    """One YAML mapping: its data, and the line (from 1) of each key and item."""

    data: dict[str, Any]
    lines: dict[Location, int]


def read_file(path: Path) -> bytes:
    """The content of a YAML file, if it is not too large.

    Raises SpecError for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(SIZE_MAX + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SpecError(
            f"cannot be read: {reason}", path=str(path), hint=blocking_folder(path)
        ) from error
    except ValueError as error:
        # open() itself refuses a NUL byte in a path.
        raise SpecError(f"not a path: {str(path)!r}") from error


def read_document(text: str | bytes, source: str) -> Document:
    """The one mapping in ``text``; ``source`` names it in errors.

    Raises SpecError for anything else: no YAML, a list, two documents, a key
    that stands twice, a tag, too large, too deep.
    """
    builder = _Builder(_decode(text, source), source)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        written = builder.text.splitlines() or [""]
        # A file that ends too soon has its problem after the last line.
        line = min(mark.line + 1, len(written)) if mark else None
        raise SpecError(
            syntax_problem(error, DEPTH_MAX),
            path=source,
            line=line,
            hint=_syntax_hint(written[line - 1]) if line else None,
        ) from error
    except yaml.YAMLError as error:
        # The reader's own error, which knows no line.
        raise SpecError(
            "not valid YAML: it holds a control character", path=source
        ) from error


def syntax_problem(error: yaml.MarkedYAMLError, depth_max: int) -> str:
    """What the parser says, in our own words where there are some.

    libyaml 0.2.6 and later has its own limit for nesting. Its scanner reads ahead,
    and may meet that limit before the first level is counted here.
    """
    problem = error.problem or error.context or "unreadable"
    if "nesting depth" in problem:
        return too_deep(depth_max)
    return f"not valid YAML: {problem}"


def too_deep(depth_max: int) -> str:
    return f"nested too deeply: {depth_max} levels at most"


def _syntax_hint(line: str) -> str | None:
    if "\t" in line:
        return "indent with spaces, not tabs"
    if re.search(r"[\[,]\s*:[0-9]", line):
        # YAML takes the colon for that of a mapping, but only inside brackets.
        return "inside brackets, quote a value that starts with a colon: ':80'"
    return None


def _decode(text: str | bytes, source: str) -> str:
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > SIZE_MAX:
            raise SpecError(f"too large: more than {SIZE_MAX} bytes", path=source)
        if b"\0" in raw:
            raise SpecError("a binary file, not a spec", path=source)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SpecError("not UTF-8 text", path=source, line=line) from error
    except UnicodeEncodeError as error:
        raise SpecError("not valid Unicode text", path=source) from error


@dataclass
class _Anchor:
    value: Any
    nodes: int


@dataclass
class _Builder:
    text: str
    source: str
    nodes: int = 0
    lines: dict[Location, int] = field(default_factory=dict)
    anchors: dict[str, _Anchor] = field(default_factory=dict)

    def document(self) -> Document:
        stream: Iterator[Any] = yaml.parse(self.text, Loader=LOADER)
        found: list[Any] = []
        for event in stream:
            if isinstance(event, events.DocumentStartEvent):
                if found:
                    self._refuse(
                        "a second document starts here; one file, one VM", event
                    )
                root = next(stream)
                found.append(self._value(root, stream, ()))
        if not found or found == [None]:
            raise SpecError(
                "empty: no spec in it",
                path=self.source,
                hint="qemuctl spec example prints one to start from",
            )
        if not isinstance(found[0], dict):
            self._refuse("not a spec: it must be lines of `key: value`", root)
        return Document(found[0], self.lines)

    def _value(self, event: Any, stream: Iterator[Any], at: Location) -> Any:
        if isinstance(event, events.AliasEvent):
            return self._alias(event)
        if event.tag not in (None, "!"):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(f"YAML tags are not supported: {tag}", event)
        before = self.nodes
        self._count(1, event)
        value: Any
        if isinstance(event, events.ScalarEvent):
            # implicit[0]: written plainly, without quotes.
            plain = event.implicit[0]
            value = Plain(event.value) if plain else event.value
            if plain and value in _NULLS:
                value = None
        elif len(at) >= DEPTH_MAX:
            self._refuse(too_deep(DEPTH_MAX), event)
        elif isinstance(event, events.SequenceStartEvent):
            value = self._sequence(stream, at)
        else:
            value = self._mapping(stream, at)
        if event.anchor is not None:
            self.anchors[event.anchor] = _Anchor(value, self.nodes - before)
        return value

    def _alias(self, event: Any) -> Any:
        anchor = self.anchors.get(event.anchor)
        if anchor is None:
            # Not there, or around this very alias: then it has no end.
            self._refuse(f"no such anchor: *{event.anchor}", event)
        self._count(anchor.nodes, event)
        return anchor.value

    def _sequence(self, stream: Iterator[Any], at: Location) -> list[Any]:
        items: list[Any] = []
        for event in stream:
            if isinstance(event, events.SequenceEndEvent):
                break
            here = (*at, len(items))
            self.lines[here] = _line(event)
            items.append(self._value(event, stream, here))
        return items

    def _mapping(self, stream: Iterator[Any], at: Location) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for event in stream:
            if isinstance(event, events.MappingEndEvent):
                break
            if not isinstance(event, events.ScalarEvent):
                self._refuse("a key must be plain text", event)
            key = event.value
            here = (*at, key)
            if key in items:
                self._refuse(
                    f"stands twice, first in line {self.lines[here]}", event, here
                )
            self.lines[here] = _line(event)
            items[key] = self._value(next(stream), stream, here)
        return items

    def _count(self, nodes: int, event: Any) -> None:
        self.nodes += nodes
        if self.nodes > NODES_MAX:
            self._refuse(f"too many values: {NODES_MAX} at most", event)

    def _refuse(self, problem: str, event: Any, at: Location = ()) -> NoReturn:
        raise SpecError(
            problem, path=self.source, line=_line(event), key=dotted(at) or None
        )


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
