"""What is wrong with a spec, told to whoever wrote it.

Faults are named as the model has its fields; a user who wrote ``memory: 12Q``
knows no ``memory.size``. So each problem is told at the deepest place that
is really there in what was written.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from qemuctl.errors import SpecError
from qemuctl.structs import Struct
from qemuctl.typed.faults import Fault, Location, Wrong, dotted

SHOWN_MAX = 20


class Problem(Struct, kw_only=False):
    """One thing that is wrong.

    ``at`` leads to the field; ``place`` to what the message is printed with,
    which for an unknown key is the part that holds it.
    """

    at: Location
    place: Location
    text: str
    hint: str | None = None
    line: int | None = None


def nearest(word: str, known: Sequence[str]) -> str | None:
    """``did you mean memory?``, if one of ``known`` is close to ``word``."""
    folded = word.lower().replace("-", "_")
    close = difflib.get_close_matches(folded, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None


def spec_error(
    wrong: Wrong,
    data: Any,
    *,
    source: str | None = None,
    lines: Mapping[Location, int] | None = None,
) -> SpecError:
    """All that is wrong with ``data``, one problem a line, as one SpecError.

    Its ``line``, ``key`` and ``hint`` are those of the first problem.
    """
    found = [_problem(fault, data, lines or {}) for fault in wrong.faults]
    found.sort(key=lambda problem: problem.line or 0)
    return join(found, source)


def join(found: Sequence[Problem], source: str | None) -> SpecError:
    """One SpecError of one or more problems."""
    first, *others = found
    text = [first.text]
    for other in others[: SHOWN_MAX - 1]:
        aside = f" ({other.hint})" if other.hint else ""
        text.append(f"{_single(other, source)}{aside}")
    if len(found) > SHOWN_MAX:
        text.append(f"and {len(found) - SHOWN_MAX} more")
    result = SpecError(
        "\n".join(text),
        path=source,
        line=first.line,
        key=dotted(first.place) or None,
        hint=first.hint,
    )
    result.key = dotted(first.at) or None
    return result


def _single(problem: Problem, source: str | None) -> SpecError:
    return SpecError(
        problem.text,
        path=source,
        line=problem.line,
        key=dotted(problem.place) or None,
    )


def _problem(fault: Fault, data: Any, lines: Mapping[Location, int]) -> Problem:
    at, hint = _as_written(fault.at, data), fault.hint
    line = _line_of(at, lines)
    if fault.kind == "missing":
        hint = "every VM needs it: write it down"
    elif fault.known:
        hint = nearest(fault.word, fault.known)
    place = at[:-1] if fault.kind == "unknown key" else at
    return Problem(at, place, fault.text, hint, line)


def _as_written(loc: Location, data: Any) -> Location:
    """As much of ``loc`` as stands in ``data``, and a last key that is missing.

    A part that was written as one plain value has no keys of its own.
    """
    at: list[str | int] = []
    for part in loc:
        if isinstance(data, Mapping):
            at.append(part)
            if part not in data:
                break
            data = data[part]
        elif isinstance(data, (list, tuple)) and isinstance(part, int):
            at.append(part)
            data = data[part] if part < len(data) else None
        else:
            break
    return tuple(at)


def _line_of(at: Location, lines: Mapping[Location, int]) -> int | None:
    for end in range(len(at), 0, -1):
        if at[:end] in lines:
            return lines[at[:end]]
    return None
