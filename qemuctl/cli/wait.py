"""`wait`: for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Option, command
from qemuctl.cli.output import print_json, working
from qemuctl.cli.parameters import Json, Name, Timeout, seconds
from qemuctl.cli.running import run_async
from qemuctl.cli.streaming import print_line
from qemuctl.errors import NotFound, StateError, UsageError
from qemuctl.registry.states import State

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm


@command("wait", example="qemuctl wait web --for serial:'login:' --timeout 30")
def wait(
    name: Name,
    what: Annotated[
        str,
        Option(
            "--for",
            metavar="WHAT",
            help="agent, running, paused, stopped, serial:REGEX or event:NAME",
        ),
    ] = "agent",
    timeout: Timeout = "30",
    json: Json = False,
) -> None:
    """Wait until something is so; a time-out says what was waited for.

    What the console said before counts, too; ^ and $ are the ends of a line.
    """
    kind, colon, rest = what.partition(":")
    if kind not in ("agent", "running", "paused", "stopped", "serial", "event") or (
        bool(colon and rest) != (kind in ("serial", "event"))
    ):
        raise UsageError(
            f"cannot wait for {what!r}",
            hint="agent, running, paused, stopped, serial:REGEX or event:NAME",
        )
    found = run_async(_wait(name, kind, rest, seconds(timeout)))
    if json:
        print_json({"name": name, "for": what, "found": found})
    elif kind == "event":
        print_line(found)


async def _wait(name: str, kind: str, rest: str, patience: float) -> Any:
    """What was found: an event's data, the text that matched, or how it ended."""
    from qemuctl.process import runs
    from qemuctl.registry.vms import find
    from qemuctl.vm.attach import attach

    if kind == "stopped" and not runs(find(name).lock):
        return None
    with working(f"waiting for {name}: {kind} {rest}"):
        try:
            async with await attach(name) as vm:
                return await _wait_in(vm, kind, rest, patience)
        except (NotFound, StateError):
            # It may have ended since, and its folder gone with it.
            if kind != "stopped" or _is_on(name):
                raise
    return None


def _is_on(name: str) -> bool:
    from qemuctl.process import runs
    from qemuctl.registry.vms import find

    try:
        return runs(find(name).lock)
    except NotFound:
        return False


async def _wait_in(vm: Vm, kind: str, rest: str, patience: float) -> Any:
    if kind == "stopped":
        return await _stopped(vm, patience)
    if kind == "serial":
        return await vm.wait_console(_regex(rest), timeout=patience)
    if kind == "event":
        return (await vm.wait_event(rest, timeout=patience)).data
    if kind == "agent":
        await _not_paused(vm)
        await vm.wait_ready(timeout=patience)
    else:
        await vm.wait_state(State(kind), timeout=patience)
    return None


async def _not_paused(vm: Vm) -> None:
    """Raises StateError where waiting would only end in a time-out."""
    state = await vm.state()
    if state is State.PAUSED:
        raise StateError(
            f"wait for the agent of {vm.name}", state, "the VM is paused",
            hint=f"qemuctl resume {vm.name}",
        )  # fmt: skip


def _regex(pattern: str) -> str:
    import re

    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"not a regular expression: {pattern!r}: {error}") from error
    return pattern


async def _stopped(vm: Vm, patience: float) -> str:
    import asyncio

    from qemuctl.errors import WaitTimeout

    try:
        async with asyncio.timeout(patience):
            return (await vm.wait_exit()).text
    except TimeoutError as error:
        raise WaitTimeout(
            f"{vm.name} to stop", patience, console_tail=vm.console_tail()
        ) from error
