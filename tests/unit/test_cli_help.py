"""The command line before it does anything: help, completion, usage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from qemuctl.cli.app import Commands, app
from tests.conftest import Cli

ROOT = typer.main.get_command(app)
CONTEXT: Any = None


def commands() -> dict[str, Any]:
    """Every command by its words, those of groups too."""
    found: dict[str, Any] = {}
    assert isinstance(ROOT, Commands)
    for name in ROOT.list_commands(CONTEXT):
        command = ROOT.get_command(CONTEXT, name)
        inner = getattr(command, "commands", None)
        found |= (
            {f"{name} {n}": c for n, c in inner.items()} if inner else {name: command}
        )
    return found


ALL = commands()
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", ALL)
def test_each_help_ends_with_an_example_of_itself(name: str) -> None:
    assert re.match(rf"Example:  .*\bqemuctl {name}\b", ALL[name].epilog), name


@pytest.mark.parametrize("name", ALL)
def test_each_command_says_what_it_does(name: str) -> None:
    first = (ALL[name].help or "").splitlines()[0]
    assert first[0].isupper()
    assert first.endswith((".", ";", ":"))


@pytest.mark.parametrize("name", ALL)
def test_the_readme_knows_each_command(name: str) -> None:
    word = name.split(maxsplit=1)[0]
    assert re.search(rf"`[^`\n]*\b{word}\b[^`\n]*`|qemuctl {word}\b", README), name


@pytest.mark.parametrize(
    "name",
    [
        "ls",
        "info",
        "argv",
        "doctor",
        "gc",
        "create",
        "start",
        "stop",
        "kill",
        "wait",
        "pause",
        "resume",
        "reset",
        "reboot",
    ],
)
def test_what_prints_a_table_takes_json(name: str) -> None:
    assert "--json" in {opt for param in ALL[name].params for opt in param.opts}


def test_names_complete_in_the_shell(tmp_path: Path) -> None:
    for name in ("web", "work", "other"):
        folder = tmp_path / "state" / "vms" / name
        folder.mkdir(parents=True)
        (folder / "vm.yaml").write_text(f"name: {name}\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "qemuctl"],
        env=os.environ
        | {
            "QEMUCTL_HOME": str(tmp_path),
            "_QEMUCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": "qemuctl stop w",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["web", "work"]


@pytest.mark.parametrize(
    ("word", "named"), [("ps", "ls"), ("shutdown", "stop"), ("shell", "ssh")]
)
def test_what_others_call_a_command_leads_to_ours(
    cli: Cli, word: str, named: str
) -> None:
    done = cli(word, "web")
    assert done.returncode == 2
    assert f"did you mean qemuctl {named}?" in done.stderr.decode()
