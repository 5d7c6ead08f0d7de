"""`help` and `version`: the manual in qemuctl/manual, and the help of commands."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from qemuctl import __version__, cli
from qemuctl.cli.declare import HOMES, Argument, Command, Group, command, declared
from qemuctl.errors import UsageError

# In the order in which they are listed.
TOPICS = (
    "first-steps", "images", "disks", "networks", "templates", "snapshots",
    "migration", "pytest", "ci", "server", "security", "troubleshooting",
    "from-virsh", "from-docker", "from-lima", "from-qemu",
)  # fmt: skip
_PAGES = Path(__file__).parents[1] / "manual"
_WIDTH = 88  # columns of a page, also on a wider terminal


def page(topic: str) -> str:
    """The Markdown text of a page of the manual."""
    return (_PAGES / f"{topic}.md").read_text(encoding="utf-8")


def summary(topic: str) -> str:
    """What a page is about, in a line: what follows its heading."""
    return page(topic).splitlines()[2]


def plain(text: str) -> str:
    """A page without its fences: what they hold is indented."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        else:
            lines.append(f"    {line}".rstrip() if inside else line)
    return "\n".join(lines)


def _complete(incomplete: str) -> list[str]:
    return [topic for topic in TOPICS if topic.startswith(incomplete)]


@command("help", example="qemuctl help images")
def help_(
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="TOPIC | COMMAND", help="what about", autocompletion=_complete
        ),
    ] = None,
) -> None:
    """Show a page of the manual, or the help of a command.

    Without a topic, the list of topics.
    """
    if not words:
        _list()
    elif words[0] in TOPICS and len(words) == 1:
        _show(page(words[0]))
    else:
        _check_known(words)
        print(cli.command_help(words))


@command("version", example="qemuctl version")
def version() -> None:
    """Print qemuctl's version."""
    print(f"qemuctl {__version__}")


def _list() -> None:
    width = max(map(len, TOPICS))
    for topic in TOPICS:
        print(f"{topic:<{width}}  {summary(topic)}")
    print("\nqemuctl help TOPIC    shows a page")
    print("qemuctl help COMMAND  shows what a command takes")
    print("qemuctl --help        lists the commands")


def _show(text: str) -> None:
    if not sys.stdout.isatty():
        print(plain(text))
        return
    # Loading rich takes longer than most commands run.
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    # In the terminal's own colours, which its user can read.
    shown = Markdown(text, code_theme="ansi_dark")
    console.print(shown, width=min(_WIDTH, console.width))


def _check_known(words: list[str]) -> None:
    """Raises UsageError for what is neither a command nor one of a group's."""
    known = [*HOMES, *TOPICS]
    members: dict[str, Command | Group] = {}
    for number, word in enumerate(words):
        if word not in (members if number else HOMES):
            raise _unknown(words[: number + 1], known)
        found = members[word] if number else declared(word)
        members = found.members if isinstance(found, Group) else {}
        known = list(members)


def _unknown(words: list[str], known: list[str]) -> Exception:
    *before, wrong = words
    said = " ".join(words)
    wrong = wrong.lower()
    near = [k for k in known if wrong in k] or get_close_matches(wrong, known, n=1)
    if near:
        hint = f"did you mean `qemuctl help {' '.join([*before, near[0]])}`?"
    else:
        hint = f"`qemuctl {' '.join(['help', *before])}` lists what there is"
    return UsageError(f"no such topic or command: {said}", hint=hint)
