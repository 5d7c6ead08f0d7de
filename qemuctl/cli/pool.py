"""`pool start|status|stop`: forks of a template, kept ready for everybody."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from qemuctl.cli.declare import Argument, Option, group
from qemuctl.cli.output import note, print_json, print_table, working
from qemuctl.cli.parameters import Json
from qemuctl.cli.running import for_each, run_async
from qemuctl.cli.templates import complete_templates
from qemuctl.errors import StateError
from qemuctl.pool.status import Status

pool = group("pool", "Forks of a template that are parked, to be had at once.")


def complete_pools(incomplete: str) -> list[str]:
    """Names of templates that have a pool, for the shell's completion."""
    from qemuctl.pool.control import running

    return [name for name in running() if name.startswith(incomplete)]


@pool.command("start", example="qemuctl pool start db --size 8")
def start(
    template: Annotated[
        str,
        Argument(
            metavar="TEMPLATE",
            help="a template's name",
            autocompletion=complete_templates,
        ),
    ],
    size: Annotated[int, Option(min=1, max=100, help="how many are kept parked")] = 4,
) -> None:
    """Keep forks of a template parked; `run --template` and `fork -- CMD` use them.

    It returns when the first is parked. The pool is a process of its own, which
    fills up again in the background while the host has memory to spare.
    """
    run_async(_start(template, size))


async def _start(name: str, size: int) -> None:
    from qemuctl.pool.control import start as starting
    from qemuctl.pool.control import status as asking
    from qemuctl.templates.catalog import current, find

    template = find(name)
    there = await asking(name)
    if there is not None and there.size == size:
        note(f"{name} has a pool already")
        return
    if there is not None:
        raise StateError(
            f"start a pool of {name}",
            "running",
            f"there is one already, of another size: {there.size}",
            hint=f"qemuctl pool stop {name}",
        )
    with working(f"parking the first fork of {name}", say_after=3.0) as status:
        template = await current(template, progress=note, status=status)
        status(f"parking the first fork of {name}")
        await starting(template, size)
    note(f"the pool of {name} is ready; it ends with: qemuctl pool stop {name}")


@pool.command("status", example="qemuctl pool status")
def status(
    templates: Annotated[
        list[str] | None,
        Argument(metavar="[TEMPLATE…]", autocompletion=complete_pools),
    ] = None,
    json: Json = False,
) -> None:
    """Show how pools are doing; without a name, all of them."""
    from qemuctl.cli.numbers import size
    from qemuctl.pool.control import running

    rows = run_async(_statuses(templates or running(), bool(templates)))
    if json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ("TEMPLATE", "SIZE", "PARKED", "TAKEN", "STARTED", "DIED", "MEMORY", "PROBLEM"),
        (
            (
                row.template, row.size, row.parked, row.handed_out, row.started,
                row.deaths, size(row.memory), row.problem or "",
            )
            for row in rows
        ),
    )  # fmt: skip


async def _statuses(names: list[str], asked: bool) -> list[Status]:
    from qemuctl.pool.control import status as asking

    found = await asyncio.gather(*map(asking, names), return_exceptions=True)
    rows = []
    for name, row in zip(names, found, strict=True):
        if isinstance(row, Status):
            rows.append(row)
        elif isinstance(row, StateError) and not asked:
            rows.append(Status(template=name, problem=row.message))
        elif isinstance(row, BaseException):
            raise row
        elif asked:
            raise _none(name)
    return rows


def _none(name: str) -> StateError:
    from qemuctl.pool.control import running

    if name in running():
        reason = "it is just starting, or ending"
        return StateError(f"reach the pool of {name}", "starting", reason)
    hint = f"qemuctl pool start {name}"
    return StateError(f"find the pool of {name}", "off", "none runs", hint=hint)


@pool.command("stop", example="qemuctl pool stop db")
def stop(
    templates: Annotated[
        list[str],
        Argument(metavar="TEMPLATE…", autocompletion=complete_pools),
    ],
) -> None:
    """End pools and what is parked in them; forks that were taken go on."""
    from qemuctl.pool.control import stop as stopping

    def ending(name: str) -> None:
        with working(f"ending the pool of {name}", say_after=3.0):
            ended = run_async(stopping(name))
        if not ended:
            raise _none(name)
        note(f"ended the pool of {name}")

    for_each(templates, ending)
