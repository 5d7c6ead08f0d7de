"""qemuctl(1), made of the manual's pages when a wheel is built: a hook of hatchling's,
which needs nothing else. Alone it prints the page.

Only what the manual uses of Markdown is known: headings, paragraphs, lists, tables,
fences, and code, emphasis and links in a line (man(7) for what they become).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # somebody reads the page without a build

    class BuildHookInterface:  # type: ignore[no-redef]
        pass


ROOT = Path(__file__).parents[1]
_HEAD = """\
.TH QEMUCTL 1 "" "qemuctl {version}" "User Commands"
.SH NAME
qemuctl \\- virtual machines as ordinary processes
.SH SYNOPSIS
.B qemuctl
.I COMMAND
[\\fIARGUMENT\\fR ...]
.SH DESCRIPTION
These are the pages of
.BR "qemuctl help" ,
one section each. \\fBqemuctl \\-\\-help\\fR lists the commands,
\\fBqemuctl help\\fR \\fICOMMAND\\fR shows what one takes.
"""
_CODE = re.compile(r"`([^`]+)`")
_STRONG, _EMPHASIS = re.compile(r"\*\*([^*]+)\*\*"), re.compile(r"\*([^*]+)\*")
_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")


def page(version: str) -> str:
    """The whole page, in man(7)'s macros."""
    topics = re.search(r"TOPICS = \((.*?)\)", _source("cli/help.py"), re.DOTALL)
    assert topics is not None
    parts = [_HEAD.format(version=version)]
    for topic in re.findall(r'"([\w-]+)"', topics[1]):
        parts += ["\n".join(_lines(_source(f"manual/{topic}.md"))), "\n"]
    return "".join(parts)


def _source(name: str) -> str:
    return (ROOT / "qemuctl" / name).read_text(encoding="utf-8")


def _lines(text: str) -> Iterator[str]:
    fenced, rows = False, 0
    for line in _joined(text):
        if line.startswith("```"):
            fenced = not fenced
            yield ".PP\n.in +4n\n.nf" if fenced else ".fi\n.in"
        elif fenced:
            yield _safe(line)
        elif line.startswith("|"):
            rows += 1
            if rows != 2:  # the line below the head
                yield from _row(line)
        else:
            rows = 0
            yield _line(line)


def _joined(text: str) -> Iterator[str]:
    """The lines, each paragraph and each item of a list in one."""
    fenced, whole = False, ""
    for line in [*text.splitlines(), ""]:
        begins = line.startswith(("```", "#", "|", "- ")) or not line
        if whole and (begins or fenced):
            yield whole
            whole = ""
        if line.startswith("```"):
            fenced = not fenced
        if fenced or (begins and not line.startswith("- ")):
            yield line
        else:
            whole = f"{whole} {line.strip()}".strip()


def _row(line: str) -> Iterator[str]:
    """The first cell is what the others are about."""
    first, *rest = (
        _inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]
    )
    if first or any(rest):
        yield ".TP"
        yield first or "\\&"
        yield "; ".join(filter(None, rest)) or "\\&"


def _line(line: str) -> str:
    if line.startswith("# "):
        return f".SH {_safe(line[2:].upper())}"
    if line.startswith("## "):
        return f".SS {_inline(line[3:])}"
    if line.startswith("- "):
        return f".IP \\(bu 2\n{_inline(line[2:])}"
    return _inline(line) if line else ".PP"


def _inline(text: str) -> str:
    """A text with fonts. Code has the letters that it has."""
    parts = _CODE.split(text)
    for index, part in enumerate(parts):
        plain = _safe(part.replace("\\|", "|"))
        if index % 2:
            parts[index] = f"\\fB{plain}\\fR"
        else:
            plain = _LINK.sub(r"\1", plain)
            plain = _STRONG.sub(r"\\fB\1\\fR", plain)
            parts[index] = _EMPHASIS.sub(r"\\fI\1\\fR", plain)
    return "".join(parts)


def _safe(text: str) -> str:
    """What roff would take for its own is escaped."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text


class CustomBuildHook(BuildHookInterface):
    """Adds the page to a wheel, which installs it below share/man."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        self._folder = tempfile.TemporaryDirectory(prefix="qemuctl-man-")
        made = Path(self._folder.name) / "qemuctl.1"
        made.write_text(page(self.metadata.version), encoding="utf-8")
        build_data["shared_data"][str(made)] = "share/man/man1/qemuctl.1"

    def finalize(self, *_: Any) -> None:
        self._folder.cleanup()


if __name__ == "__main__":
    sys.stdout.write(page(""))
