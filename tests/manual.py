"""The pages of the manual, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from qemuctl.cli.help import page

_FENCED = re.compile(r"^```(?P<info>.*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)
_CODE = re.compile(r"`(qemuctl [^`]+)`")
# What a shell takes for the end of a command; a redirection ends the words, too.
_ENDS = re.compile(r"[();<>|&]+")


@dataclass(frozen=True)
class Block:
    """What is between two fences; ``info`` is what follows the first."""

    info: str
    text: str


def blocks(topic: str) -> list[Block]:
    return [Block(**match.groupdict()) for match in _FENCED.finditer(page(topic))]


def shell(topic: str, info: str = "sh") -> str:
    """The script of a page: its shell blocks with this info string."""
    return "".join(block.text for block in blocks(topic) if block.info == info)


def files(topic: str) -> dict[str, str]:
    """The files that a page shows: blocks whose first line is their name."""
    named = {}
    for block in blocks(topic):
        first = block.text.partition("\n")[0]
        if match := re.fullmatch(r"# ([\w./-]+\.\w+)", first):
            named[match[1]] = block.text
    return named


def commands(topic: str) -> Iterator[list[str]]:
    """The words after `qemuctl` of each command in a page's blocks."""
    for block in blocks(topic):
        if block.info.startswith(("sh", "yaml")):
            for line in block.text.splitlines():
                yield from _in_line(line.lstrip(" -"))


def mentioned(topic: str) -> Iterator[list[str]]:
    """The same of its text, where a command may be without its arguments."""
    for code in _CODE.findall(_FENCED.sub("", page(topic))):
        yield from _in_line(" ".join(code.split()))


def _in_line(line: str) -> Iterator[list[str]]:
    if "qemuctl " not in line:
        return
    words: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in [*lexer, ";"]:
        if not _ENDS.fullmatch(word):
            words.append(word)
            continue
        if "qemuctl" in words:
            yield words[words.index("qemuctl") + 1 :]
        words = []


def tables(topic: str) -> Iterator[tuple[str, list[str]]]:
    """Each cell of a page's tables: its column's head, and the code in it."""
    heads: list[str] = []
    for line in page(topic).splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        else:
            for head, cell in zip(heads, cells, strict=True):
                yield head, re.findall(r"`([^`]+)`", cell)
