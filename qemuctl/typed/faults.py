"""What is wrong with data, and where in it."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from qemuctl.structs import Struct

Location = tuple[str | int, ...]
"""The way to a value: ``("disks", 0, "path")``."""

NO_VALUE = "write a value, or leave the key out"

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2


class Fault(Struct, kw_only=False):
    """One thing that is wrong, ``at`` a place in the data.

    ``known`` are the words of which one may be meant by the ``word`` that is wrong.
    """

    at: Location
    text: str
    hint: str | None = None
    word: str = ""
    known: tuple[str, ...] = ()
    kind: Literal["value", "missing", "unknown key"] = "value"

    def below(self, part: str | int) -> Fault:
        """The same, seen from where ``part`` leads to it."""
        return replace(self, at=(part, *self.at))


class Wrong(ValueError):
    """Data that is not what its type says; ``faults`` has one or more."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(faults)
        said = ((dotted(each.at), each.text) for each in faults)
        super().__init__(
            "; ".join(f"{at}: {text}" if at else text for at, text in said)
        )


def refused(value: object, text: str, **more: Any) -> Wrong:
    """The error for a value, ``more`` as a `Fault` has it; of one that is missing
    nothing else can be said."""
    if value is None:
        return Wrong([Fault((), "no value", NO_VALUE)])
    return Wrong([Fault((), text, **more)])


def show(value: Any) -> str:
    """A value for a message, never long."""
    if isinstance(value, Struct):
        return type(value).__name__
    if isinstance(value, bool):
        return str(value).lower()
    return _SHORT.repr(value)


def dotted(at: Location) -> str:
    """A location as a user reads it: ``disks[0].path``."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
