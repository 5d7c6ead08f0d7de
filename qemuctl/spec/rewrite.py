"""A spec's text with some of its keys changed, and all else as its user wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from qemuctl.errors import SpecError
from qemuctl.spec.document import read_document
from qemuctl.spec.load import parse_spec
from qemuctl.spec.model import Spec
from qemuctl.spec.text import dump


def rewritten(text: str, after: Spec) -> str:
    """The YAML ``text``, changed so that it says ``after``.

    Only top-level keys whose values differ are written anew, at their places;
    comments elsewhere are kept. Where that does not come out right, as with a
    whole spec in one pair of braces, the YAML of ``after`` is the result.
    """
    try:
        # The name of a VM may be that of its folder alone.
        name = None if "name" in read_document(text, "the spec").data else after.name
        before = parse_spec(text, name=name)
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        for key in _differing(before, after):
            lines = _with(lines, key, _block(after, key))
        written = "".join(lines)
        if parse_spec(written, name=name) == after:
            return written
    except SpecError:
        pass
    return dump(after)


def _differing(before: Spec, after: Spec) -> list[str]:
    fields = Spec.model_fields
    return [key for key in fields if getattr(before, key) != getattr(after, key)]


def _block(spec: Spec, key: str) -> list[str]:
    """The lines of one key; none for a default."""
    name = {"name": spec.name}
    part = dump(Spec.model_construct(**{**name, key: getattr(spec, key)}))
    return [
        line
        for line in part.splitlines(keepends=True)
        if key == "name" or not line.startswith("name:")
    ]


def _with(lines: Sequence[str], key: str, block: list[str]) -> list[str]:
    """The lines with another block of one top-level key, at the end if it is new."""
    known = read_document("".join(lines), "the spec").lines
    starts = sorted(line for at, line in known.items() if len(at) == 1)
    if (key,) not in known:
        return [*lines, *block]
    start = known[key,] - 1
    end = next((line - 1 for line in starts if line - 1 > start), len(lines))
    # What stands right above the next key speaks of that.
    while end > start + 1 and lines[end - 1].lstrip()[:1] in ("", "#"):
        end -= 1
    return [*lines[:start], *block, *lines[end:]]
