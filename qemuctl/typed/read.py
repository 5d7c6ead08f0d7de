"""Objects read from plain data, or all that is wrong with it."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from functools import cached_property
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from qemuctl.structs import Struct
from qemuctl.typed import plain
from qemuctl.typed.faults import NO_VALUE, Fault, Wrong, refused, show
from qemuctl.typed.marks import Before, Check, Limits
from qemuctl.typed.plain import Reader

StructT = TypeVar("StructT", bound=Struct)

_PLAIN: dict[Any, Reader] = {
    str: plain.text, int: plain.whole, float: plain.number, bool: plain.switch,
    Path: plain.path, Any: plain.anything, types.NoneType: plain.nothing,
}  # fmt: skip


class Key:
    """A field of a class: its ``annotation`` with all marks, and its default."""

    def __init__(self, owner: type[Struct], field: Field[Any]) -> None:
        self._owner, self._field = owner, field
        self.name = field.name

    @cached_property
    def annotation(self) -> Any:
        return _hints(self._owner)[self.name]

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self._field.default is self._field.default_factory is MISSING

    @property
    def default(self) -> Any:
        if self._field.default_factory is not MISSING:
            return self._field.default_factory()
        return self._field.default

    @property
    def description(self) -> str | None:
        return self._field.metadata.get("description")

    @property
    def limits(self) -> Limits:
        return self._field.metadata.get("limits") or Limits()

    @cached_property
    def _read(self) -> Reader:
        return _limited(_reader(self.annotation), self.limits)

    def prepare(self) -> None:
        """Makes what `given` uses."""
        self._read  # noqa: B018

    def given(self, value: Any, others: Mapping[str, Any]) -> Any:
        """What is read from a value; ``others`` are the fields before this one. Raises
        `Wrong`."""
        found, check = self._read(value), self._field.metadata.get("check")
        if check is not None:
            _called(lambda given: check(given, others), found)
        return found


_KEYS: dict[type[Any], Mapping[str, Key]] = {}
_HINTS: dict[type[Any], Mapping[str, Any]] = {}


def keys(of: type[Struct]) -> Mapping[str, Key]:
    """The fields of a class, by their names."""
    found = _KEYS.get(of)
    if found is None:
        found = {field.name: Key(of, field) for field in fields(of)}
        _KEYS[of] = found
    return found


def prepare(of: type[Struct]) -> None:
    """Makes sense of a class's annotations before anything is read: for a process that
    reads in others, which it forks."""
    for key in keys(of).values():
        key.prepare()


def _hints(of: type[Struct]) -> Mapping[str, Any]:
    if of not in _HINTS:
        _HINTS[of] = get_type_hints(of, include_extras=True)
    return _HINTS[of]


def read(of: type[StructT], data: Any) -> StructT:
    """An object of a class, from keys and values. Keys that it does not know may be
    there. Raises `Wrong`."""
    if isinstance(data, of):
        return data
    made = object.__new__(of)
    fill(made, data)
    return made


def fill(target: Struct, data: Any, *, only_known: bool = False) -> None:
    """Gives an object its fields. Raises `Wrong`, also for keys that are not its own
    if it may have ``only_known`` ones."""
    if not isinstance(data, Mapping):
        raise refused(data, plain.no_mapping(data))
    known = keys(type(target))
    values, faults = _values(known, data)
    if only_known and data.keys() - known.keys():
        faults += _unknown(known, data)
    if faults:
        raise Wrong(faults)
    target.__dict__.update(values)
    try:
        target.__post_init__()
    except ValueError as error:
        raise refused(data, str(error)) from error


def _values(
    known: Mapping[str, Key], data: Mapping[Any, Any]
) -> tuple[dict[str, Any], list[Fault]]:
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, key in known.items():
        if name not in data:
            if key.required:
                faults.append(Fault((name,), "missing", kind="missing"))
            else:
                values[name] = key.default
            continue
        try:
            values[name] = key.given(data[name], values)
        except Wrong as wrong:
            faults += [fault.below(name) for fault in wrong.faults]
    return values, faults


def _unknown(known: Mapping[str, Key], data: Mapping[Any, Any]) -> list[Fault]:
    words = tuple(known)
    faults = []
    for key in data:
        if not isinstance(key, str):
            at = key if isinstance(key, int) else show(key)
            faults.append(Fault((at,), f"a key must be plain text: {show(key)}"))
        elif key not in known:
            text = f"unknown key: {key}"
            faults.append(Fault((key,), text, None, key, words, "unknown key"))
    return faults


# -- readers of annotations --------------------------------------------------------


def _reader(annotation: Any) -> Reader:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _marked(annotation)
    if origin is None:
        found = _PLAIN.get(annotation)
        return found or _struct(annotation)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is Literal:
        return plain.one_of(arguments)
    if origin is dict:
        return plain.mapping(_reader(arguments[0]), _reader(arguments[1]))
    return plain.items(_reader(arguments[0]), origin)


def _struct(of: Any) -> Reader:
    own: Reader | None = getattr(of, "model_read", None)
    return own or (lambda value: read(of, value))


def _union(arguments: tuple[Any, ...]) -> Reader:
    readers = [_reader(each) for each in arguments if each is not types.NoneType]
    inner = readers[0] if len(readers) == 1 else plain.either(readers)
    if types.NoneType not in arguments:
        return inner
    return lambda value: None if value is None else inner(value)


def _marked(annotation: Any) -> Reader:
    inner, *marks = get_args(annotation)
    reader = _reader(inner)
    for mark in marks:
        if isinstance(mark, Limits):
            reader = _limited(reader, mark)
        elif isinstance(mark, Before):
            reader = _after(mark.change, reader)
        elif isinstance(mark, Check):
            reader = _checked(reader, mark.check)
    return reader


def _after(change: Callable[[Any], Any], reader: Reader) -> Reader:
    return lambda value: reader(_called(change, value))


def _checked(reader: Reader, check: Callable[[Any], Any]) -> Reader:
    return lambda value: _called(check, reader(value))


def _called(check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise refused(value, str(error)) from error


def _limited(reader: Reader, limits: Limits) -> Reader:
    if limits == Limits():
        return reader

    def within(value: Any) -> Any:
        found = reader(value)
        if found is not None:
            _check_limits(found, value, limits)
        return found

    return within


def _check_limits(found: Any, written: Any, limits: Limits) -> None:
    if limits.ge is not None and found < limits.ge:
        raise refused(written, f"must be at least {limits.ge}: {show(written)}")
    if limits.le is not None and found > limits.le:
        raise refused(written, f"must be at most {limits.le}: {show(written)}")
    if limits.min_length is not None and len(found) < limits.min_length:
        raise refused(written, "empty", hint=NO_VALUE)
    if limits.max_length is not None and len(found) > limits.max_length:
        most = f"{limits.max_length} at most"
        raise refused(written, f"too long: {len(found)} characters, {most}")
