"""Reads the simple command lines, which are most of them, without typer.

`call_of` gives what typer would call, or None for a line that it leaves to typer:
completion, an unknown option, options written together, wrong values, and
whatever else is not plain. So the messages about wrong usage are typer's alone.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from qemuctl import cli
from qemuctl.cli.declare import HOMES, NAMING, Command, Group, Option, declared


class _NotPlainError(Exception):
    """A command line that is left to typer."""


def call_of(words: Sequence[str]) -> Callable[[], object] | None:
    """The call that a command line asks for; None where typer has to read it."""
    if "_QEMUCTL_COMPLETE" in os.environ or not words:
        return None
    found, rest = _command(words)
    if rest[:1] in (["-h"], ["--help"]) and not rest[1:]:
        return functools.partial(_show_help, words[:-1])
    if not isinstance(found, Command):
        return None
    try:
        return functools.partial(found.function, **_values(found, rest))
    except _NotPlainError:
        return None


def _command(words: Sequence[str]) -> tuple[Command | Group | None, list[str]]:
    """The command that the first words name, or the group, and the other words."""
    rest = list(words)
    found = declared(rest.pop(0)) if rest[0] in HOMES else None
    while isinstance(found, Group) and rest and rest[0] in found.members:
        found = found.members[rest.pop(0)]
    return found, rest


def _show_help(words: Sequence[str]) -> None:
    print(cli.command_help(words))


@dataclass
class _Parameter:
    """One parameter of a command, with the values that it was given."""

    name: str
    option: bool
    names: tuple[str, ...]
    many: bool
    kind: Any
    default: Any
    details: dict[str, Any]
    given: list[str | bool] = field(default_factory=list)

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> _Parameter:
        annotation, declaration = get_args(parameter.annotation)
        kinds = [k for k in get_args(annotation) or [annotation] if k is not NoneType]
        many = get_origin(kinds[0]) is list or get_origin(annotation) is list
        (kind,) = get_args(kinds[0]) or kinds
        option = isinstance(declaration, Option)
        word = parameter.name.replace("_", "-")
        names = declaration.names or (f"--{word}",)
        if kind is bool and not declaration.names:
            names = (f"--{word}/--no-{word}",)
        return cls(
            parameter.name, option, names, many, kind, parameter.default,
            declaration.details,
        )  # fmt: skip

    def value(self) -> Any:
        """What the function gets for it. Raises _NotPlainError."""
        if not self.given:
            if self.default is inspect.Parameter.empty:
                raise _NotPlainError
            value = self.default
        else:
            values = [self._converted(text) for text in self.given]
            value = values if self.many else values[-1]
        callback = self.details.get("callback")
        return callback(value) if callback else value

    def _converted(self, text: str | bool) -> Any:
        if self.kind in (str, bool):
            return text
        number = str(text).removeprefix("-")
        if self.kind is Path:
            return Path(str(text))
        if self.kind is not int or not (number.isascii() and number.isdecimal()):
            raise _NotPlainError
        value = int(text)
        low, high = self.details.get("min"), self.details.get("max")
        if (low is not None and value < low) or (high is not None and value > high):
            raise _NotPlainError
        return value


def _values(command: Command, words: list[str]) -> dict[str, Any]:
    """The arguments of the command's function. Raises _NotPlainError."""
    signature = inspect.signature(command.function, eval_str=True)
    parameters = [_Parameter.of(each) for each in signature.parameters.values()]
    options = {
        name: (each, number == 0 if each.kind is bool else None)
        for each in parameters
        if each.option
        for names in each.names
        for number, name in enumerate(names.split("/"))
    }
    placed = _without_options(words, options, for_guest=command.for_guest)
    if command.for_guest and any(p.given for p in parameters if p.name in NAMING):
        raise _NotPlainError
    _place(placed, [each for each in parameters if not each.option])
    return {each.name: each.value() for each in parameters}


def _without_options(
    words: list[str],
    options: dict[str, tuple[_Parameter, bool | None]],
    *,
    for_guest: bool,
) -> list[str]:
    """Gives options their values; what stays are arguments. Raises _NotPlainError."""
    placed: list[str] = []
    left = iter(words)
    for word in left:
        if for_guest and placed and (word == "--" or not _is_option(word)):
            # The guest's own command, which may hold anything.
            return [*placed, *([] if word == "--" else [word]), *left]
        if not _is_option(word):
            placed.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in options or (equals and not name.startswith("--")):
            raise _NotPlainError
        parameter, switch = options[name]
        if switch is not None:
            if equals:
                raise _NotPlainError
            parameter.given.append(switch)
        elif equals:
            parameter.given.append(value)
        else:
            parameter.given.append(_next(left))
    return placed


def _next(left: Any) -> str:
    for word in left:
        return str(word)
    raise _NotPlainError


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1


def _place(words: list[str], arguments: list[_Parameter]) -> None:
    """Gives arguments their values by place. Raises _NotPlainError."""
    for argument in arguments:
        if argument.many:
            argument.given, words = [*words], []
        elif words:
            argument.given = [words.pop(0)]
    if words:
        raise _NotPlainError
