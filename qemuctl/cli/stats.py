"""`stats` and `top`: numbers of one VM, and of all of them."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from typing import Annotated

from qemuctl.cli.declare import Option, command
from qemuctl.cli.parameters import Json, Name, seconds
from qemuctl.cli.running import run_async

Interval = Annotated[
    str, Option(metavar="TIME", help="between two samples, such as 1s")
]
Count = Annotated[int | None, Option(min=1, metavar="N", help="samples, then end")]
# Less would measure the measuring: CPU time is counted in hundredths of a second.
_SHORTEST = 0.1
# Seconds between two samples, if nobody says.
_USUAL = 1.0


@command("stats", example="qemuctl stats web --json")
def stats(
    name: Name,
    json: Json = False,
    interval: Annotated[
        str | None,
        Option(metavar="TIME", help="measure for that long, such as 1s"),
    ] = None,
    count: Count = 1,
) -> None:
    """Show what one VM takes and does: CPUs, memory, disks, network.

    The first numbers come at once, with the rates since the last time that anybody
    looked, or since the start; with --interval they are those of that time, and come
    after it. With --json a line for each sample.
    """
    from qemuctl.cli.streaming import until_unread

    every = None if interval is None else _interval(interval)
    run_async(until_unread(_stats(name, json, every, count or 1)))


@command("top", example="qemuctl top --json --count 1")
def top(json: Json = False, interval: Interval = "1s", count: Count = None) -> None:
    """Show all VMs that are on, the busiest first, until Ctrl-C.

    In a pipe it prints a table for each sample, with --json a line.
    """
    from qemuctl.cli.streaming import until_unread

    run_async(until_unread(_top(json, _interval(interval), count)))


def _interval(text: str) -> float:
    from qemuctl.errors import UsageError

    interval = seconds(text)
    if interval < _SHORTEST:
        raise UsageError(f"too short an interval: {text}", hint="100ms is the shortest")
    return interval


async def _stats(name: str, json: bool, interval: float | None, count: int) -> None:
    from qemuctl.cli.numbers import document, print_numbers
    from qemuctl.cli.streaming import print_line
    from qemuctl.registry.states import Action
    from qemuctl.vm.attach import attach

    async with (
        await attach(name, Action.MEASURE) as vm,
        aclosing(vm.stats.watch(interval or _USUAL)) as samples,
    ):
        measured = interval is None
        async for sample, rates in samples:
            if rates is None or not measured:
                measured = True
                continue
            if json:
                print_line(document(sample, rates))
            else:
                print_numbers(sample, rates)
            count -= 1
            if not count:
                return
            if not json:
                print()


async def _top(json: bool, interval: float, count: int | None) -> None:
    from qemuctl.cli.numbers import document
    from qemuctl.cli.streaming import print_line
    from qemuctl.cli.table import Tables
    from qemuctl.stats.all_vms import Board

    async with Board() as board:
        with Tables(live=not json and sys.stdout.isatty()) as tables:
            # Rates need a sample before the first that is shown.
            await board.look()
            due = time.monotonic()
            while count is None or count:
                due = max(due + interval, time.monotonic())
                # Counters grow without an event.
                await asyncio.sleep(due - time.monotonic())
                rows = await board.look()
                if json:
                    vms = [document(row.sample, row.rates) for row in rows]
                    print_line({"at": round(time.time(), 3), "vms": vms})
                else:
                    tables.show(rows)
                count = count - 1 if count is not None else None
