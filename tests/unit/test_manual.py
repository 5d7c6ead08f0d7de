"""The manual: its pages, `qemuctl help`, and that each command in it exists."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import qemuctl
from qemuctl.cli.app import app
from qemuctl.cli.help import TOPICS, page
from qemuctl.spec import validate
from tests import manual
from tests.conftest import Cli

ROOT = typer.main.get_command(app)
PACKAGE = Path(qemuctl.__file__).parent
# With strings that go over several lines in one piece.
SOURCE = re.sub(
    r'"\n\s*f?"', "", "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
)
MAX_LINES = 90


def found(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The command that the words begin with, its parent's context, and the rest."""
    command: Any = ROOT
    context: Any = None
    while words and hasattr(command, "get_command") and words[0][0] != "-":
        context = command.make_context(None, [], context, resilient_parsing=True)
        command = command.get_command(context, words[0])
        assert command is not None, words
        words = words[1:]
    return command, context, words


def parse(words: list[str]) -> None:
    """Lets a command's own parser read its words, and does nothing with them."""
    command, context, rest = found(words)
    if "--help" not in rest:
        command.make_context(None, rest, context)


def exists(words: list[str]) -> None:
    """Fails unless there is such a command, with these flags."""
    command, _, rest = found(words)
    known = {opt for param in command.params for opt in param.opts}
    given = rest[: rest.index("--")] if "--" in rest else rest
    flags = {word for word in given if word.startswith("-")}
    assert flags <= known | {"--help"}, words


def test_the_topics_are_the_pages() -> None:
    pages = (PACKAGE / "manual").iterdir()
    assert sorted(TOPICS) == sorted(path.stem for path in pages)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_is_two_screens_with_a_heading_and_a_summary(topic: str) -> None:
    heading, blank, summary, after, *rest = page(topic).splitlines()
    assert heading.startswith("# ")
    assert (blank, after) == ("", "")
    assert summary[0].isupper()
    assert summary.endswith(".")
    assert len(summary) <= 63  # `qemuctl help` fits on 80 columns
    assert 4 + len(rest) <= MAX_LINES


@pytest.mark.parametrize("topic", TOPICS)
def test_each_command_of_a_page_is_accepted_by_its_parser(topic: str) -> None:
    for words in manual.commands(topic):
        parse(words)
    for words in manual.mentioned(topic):
        exists(words)


@pytest.mark.parametrize("topic", TOPICS)
def test_what_tables_call_a_command_is_one(topic: str) -> None:
    for head, codes in manual.tables(topic):
        for code in codes:
            if head == "qemuctl":
                exists(shlex.split(code))
            elif head == "flag":
                parse(["create", *shlex.split(code)])
            elif head == "option" and topic == "migration":
                parse(["migrate", *shlex.split(code), "web", "local:/"])


def test_each_message_of_the_troubleshooting_is_one_of_ours() -> None:
    messages = re.findall(r"^\*\*(.+?)\*\* —", page("troubleshooting"), re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        for part in re.split(r" ?… ?|`\w[\w-]*`.*", message):
            words = part.strip(": ").removesuffix(" 22")
            assert words in SOURCE, message
    for state in re.findall(
        r"^\*\*the VM is `([\w-]+)`", page("troubleshooting"), re.MULTILINE
    ):
        assert f'"{state}"' in SOURCE, state


@pytest.mark.parametrize("topic", TOPICS)
def test_its_yaml_is_yaml_and_its_specs_are_specs(topic: str) -> None:
    for block in manual.blocks(topic):
        if block.info == "yaml":
            data = yaml.safe_load(block.text)
            if topic != "ci":
                validate({"name": "web", **data})


def test_help_lists_the_topics_with_a_line_each(cli: Cli) -> None:
    shown = cli("help").stdout.decode().splitlines()
    assert [line.split()[0] for line in shown[: len(TOPICS)]] == list(TOPICS)
    assert all(len(line.split()) > 3 for line in shown[: len(TOPICS)])


def test_a_page_is_plain_text_in_a_pipe(cli: Cli) -> None:
    shown = cli("help", "ci").stdout.decode()
    assert shown.startswith("# Continuous integration\n")
    assert "\x1b" not in shown
    assert "```" not in shown
    assert "\n    name: guests\n" in shown


def test_a_page_is_laid_out_on_a_terminal(bare_home: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        argv = [sys.executable, "-m", "qemuctl", "help", "images"]
        env = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
        with subprocess.Popen(argv, stdin=theirs, stdout=theirs, env=env) as process:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # Linux's end of a terminal
                while part := screen.read(65536):
                    shown += part
        assert process.returncode == 0
    assert b"\x1b[" in shown
    assert b"```" not in shown
    assert b"how it gets here" in shown


@pytest.mark.parametrize("words", [["disk", "add"], ["run"], ["snapshot"]])
def test_the_help_of_a_command_is_its_own(cli: Cli, words: list[str]) -> None:
    asked = cli("help", *words)
    assert asked.returncode == 0
    assert asked.stdout == cli(*words, "--help").stdout


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        (["snapshoots"], "qemuctl help snapshots"),
        (["Migration"], "qemuctl help migration"),
        (["docker"], "qemuctl help from-docker"),
        (["net"], "qemuctl help networks"),
        (["strrt"], "qemuctl help start"),
        (["disk", "ad"], "qemuctl help disk add"),
        (["disk", "zzz"], "qemuctl help disk"),
        (["xyzzy"], "qemuctl help"),
        (["run", "more"], "qemuctl help run"),
        (["images", "more"], "qemuctl help images"),
    ],
)
def test_a_wrong_topic_names_the_nearest(cli: Cli, wrong: list[str], near: str) -> None:
    said = cli("help", *wrong)
    assert said.returncode == 2
    assert not said.stdout
    assert f"`{near}`" in said.stderr.decode()


def test_version_is_a_word_too(cli: Cli) -> None:
    assert cli("version").stdout == cli("--version").stdout != b""
