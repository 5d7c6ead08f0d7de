"""`wait` and `qmp`: for scripts, and for whoever knows QMP."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qemuctl.cli.app import Name, Timeout, app, example, seconds
from qemuctl.cli.output import print_json, working
from qemuctl.cli.running import run_async
from qemuctl.errors import CommandError, UsageError

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm


@app.command(epilog=example("qemuctl wait web --for serial:'login:' --timeout 30"))
def wait(
    name: Name,
    what: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="WHAT",
            help="agent, running, paused, stopped, serial:REGEX or event:NAME",
        ),
    ] = "agent",
    timeout: Timeout = "30",
) -> None:
    """Wait until something is so; a time-out says what was waited for."""
    kind, colon, rest = what.partition(":")
    if kind not in ("agent", "running", "paused", "stopped", "serial", "event") or (
        bool(colon and rest) != (kind in ("serial", "event"))
    ):
        raise UsageError(
            f"cannot wait for {what!r}",
            hint="agent, running, paused, stopped, serial:REGEX or event:NAME",
        )
    run_async(_wait(name, kind, rest, seconds(timeout)))


async def _wait(name: str, kind: str, rest: str, patience: float) -> None:
    from qemuctl.process import held
    from qemuctl.vm.definitions import find
    from qemuctl.vm.launch import attach
    from qemuctl.vm.states import State

    if kind == "stopped" and not held(find(name).lock):
        return
    with working(f"waiting for {name}: {kind} {rest}"):
        async with await attach(name) as vm:
            if kind == "agent":
                await vm.wait_ready(timeout=patience)
            elif kind == "stopped":
                await _stopped(vm, patience)
            elif kind == "serial":
                await vm.wait_console(_regex(rest), timeout=patience)
            elif kind == "event":
                print(json.dumps((await vm.wait_event(rest, timeout=patience)).data))
            else:
                await vm.wait_state(State(kind), timeout=patience)


def _regex(pattern: str) -> str:
    import re

    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"not a regular expression: {pattern!r}: {error}") from error
    return pattern


async def _stopped(vm: Vm, patience: float) -> None:
    import asyncio

    from qemuctl.errors import WaitTimeout

    try:
        async with asyncio.timeout(patience):
            await vm.wait_exit()
    except TimeoutError as error:
        raise WaitTimeout(
            f"{vm.name} to stop", patience, console_tail=vm.console_tail()
        ) from error


@app.command(
    epilog=example("qemuctl qmp web query-status"),
    context_settings={"ignore_unknown_options": True},
)
def qmp(
    name: Name,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="a QMP command")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE… | JSON]", help="its arguments"),
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
    from qemuctl.vm.launch import attach
    from qemuctl.vm.states import Action, require

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
