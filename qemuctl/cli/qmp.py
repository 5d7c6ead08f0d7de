"""`qmp`: any QMP command, for whoever knows it."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Annotated, Any

from qemuctl.cli.declare import Argument, command
from qemuctl.cli.output import print_json
from qemuctl.cli.parameters import Name, Timeout, seconds
from qemuctl.cli.running import run_async
from qemuctl.errors import CommandError, UsageError


@command(
    "qmp",
    example="qemuctl qmp web query-status",
    words_like_options=True,
)
def qmp(
    name: Name,
    command: Annotated[str, Argument(metavar="COMMAND", help="a QMP command")],
    arguments: Annotated[
        list[str] | None,
        Argument(metavar="[KEY=VALUE… | JSON]", help="its arguments"),
    ] = None,
    timeout: Timeout = "30",
) -> None:
    """Send any QMP command and print its reply.

    A value is read as JSON where it is JSON, else as a string.
    """
    given = _arguments(arguments or [])
    print_json(run_async(_qmp(name, command, given, seconds(timeout))))


def _arguments(words: list[str]) -> dict[str, Any]:
    """Raises UsageError for what is neither KEY=VALUE nor one JSON object."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            return dict(json.loads(words[0]))
        except ValueError as error:
            raise UsageError(f"not JSON: {words[0]}: {error}") from error
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"not an argument: {word!r}", hint="write KEY=VALUE")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    return given


async def _qmp(
    name: str, command: str, arguments: dict[str, Any], patience: float
) -> Any:
    from qemuctl.registry.states import Action, require
    from qemuctl.vm.attach import attach

    async with await attach(name) as vm:
        require(Action.QMP, await vm.state(), name)
        try:
            return await vm.command(command, arguments, timeout=patience)
        except CommandError as error:
            if error.class_ == "CommandNotFound":
                known = [c["name"] for c in await vm.command("query-commands")]
                close = get_close_matches(command, known, 1)
                error.hint = f"did you mean {close[0]}?" if close else None
            raise
