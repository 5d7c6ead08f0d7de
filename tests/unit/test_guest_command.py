"""Where the command for the guest begins on a command line."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer

from qemuctl.cli.guest_command import GuestCommand

LINES = {
    "web ls -l /": {"name": "web", "command": ["ls", "-l", "/"]},
    "web -- ls -l": {"command": ["ls", "-l"]},
    "web ls -- -l": {"command": ["ls", "--", "-l"]},
    "web -- -- x": {"command": ["--", "x"]},
    "web -p 1 -p2 ls --help": {"forward": ["1", "2"], "command": ["ls", "--help"]},
    "-p 1 web --timeout=3 -- a -p 5": {
        "forward": ["1"], "timeout": "3", "command": ["a", "-p", "5"],
    },
    "-n web cat -n": {"no": True, "command": ["cat", "-n"]},
    "-- web a -p": {"name": "web", "command": ["a", "-p"]},
    "-f x.yaml uname -a": {"file": "x.yaml", "name": "uname", "command": ["-a"]},
    "-f x.yaml -p 1 -- uname -p": {"name": "uname", "command": ["-p"]},
    "web": {"name": "web", "command": None},
    "web -p 1": {"forward": ["1"], "command": None},
    "web --": {"name": "web", "command": None},
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_what_follows_the_command_belongs_to_it(line: str) -> None:
    given: dict[str, Any] = {}
    app = typer.Typer(add_completion=False)

    @app.command(cls=GuestCommand)
    def _command(
        name: str,
        command: Annotated[list[str] | None, typer.Argument()] = None,
        forward: Annotated[list[str] | None, typer.Option("--forward", "-p")] = None,
        timeout: str = "60",
        file: Annotated[str | None, typer.Option("--file", "-f")] = None,
        no: Annotated[bool, typer.Option("--no-stdin", "-n")] = False,
    ) -> None:
        given.update(locals())

    with pytest.raises(SystemExit) as ended:
        app(line.split())
    assert ended.value.code == 0
    assert {key: given[key] for key in LINES[line]} == LINES[line]


def test_a_template_that_is_no_option_is_a_name() -> None:
    given: dict[str, Any] = {}
    app = typer.Typer(add_completion=False)

    @app.command(cls=GuestCommand)
    def _fork(template: str, words: list[str], count: int = 1) -> None:
        given.update(locals())

    with pytest.raises(SystemExit):
        app(["t", "--count", "2", "--", "ls", "--count"])
    assert (given["template"], given["words"]) == ("t", ["ls", "--count"])
    assert given["count"] == 2
