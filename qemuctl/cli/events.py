"""`events`: what happens to VMs, as it happens."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.parameters import Json, complete_names
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.vm.all_events import Named

_SINCE_HINT = "a duration such as 10m, or a time such as 2026-01-31T12:00"


@command("events", example="qemuctl events web --since 10m --json")
def events(
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="[NAME…]", help="of these VMs only", autocompletion=complete_names
        ),
    ] = None,
    since: Annotated[
        str | None,
        Option(metavar="TIME", help="past ones first: 10m, or a date and time"),
    ] = None,
    json: Json = False,
) -> None:
    """Print QEMU's events of all VMs, or some, as they come.

    VMs that start later join; what is past goes back to a VM's last start.
    With --json a line for each event.
    """
    from qemuctl.cli.streaming import until_unread

    begin = None if since is None else _moment(since)
    run_async(until_unread(_events(names or [], begin, json)))


async def _events(names: list[str], since: float | None, json: bool) -> None:
    from qemuctl.cli.streaming import print_line
    from qemuctl.vm.all_events import feed

    async with aclosing(feed(names, since=since)) as every:
        async for named in every:
            event = named.event
            if json:
                print_line(
                    {"vm": named.vm, "event": event.name, "data": event.data,
                     "at": event.at}
                )  # fmt: skip
            else:
                print(_line(named), flush=True)


def _line(named: Named) -> str:
    """One event for people, in their own time."""
    import json
    from datetime import UTC, datetime

    event = named.event
    at = datetime.fromtimestamp(event.at, UTC).astimezone()
    # As JSON, in which there are no control characters.
    data = " ".join(f"{key}={json.dumps(value)}" for key, value in event.data.items())
    stamp = at.isoformat(" ", "milliseconds")[:23]
    return f"{stamp}  {named.vm}  {event.name}  {data}".rstrip()


def _moment(text: str) -> float:
    """Seconds since the epoch of a duration ago, or of a local date and time."""
    import time
    from datetime import datetime

    from qemuctl.errors import UsageError
    from qemuctl.units import parse_duration

    with contextlib.suppress(ValueError):
        return time.time() - parse_duration(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"not a time: {text!r}", hint=_SINCE_HINT) from error
