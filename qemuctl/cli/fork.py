"""`fork`: guests that are ready at once."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli import flags
from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import note, working
from qemuctl.cli.running import run_async
from qemuctl.cli.templates import complete_templates
from qemuctl.cli.words import Interactive, NoStdin, Tty, Typed
from qemuctl.errors import QemuctlError, UsageError
from qemuctl.host.resources import cpu_count

if TYPE_CHECKING:
    from qemuctl.guest.agent import Result
    from qemuctl.registry.template import Template


@command("fork", example="qemuctl fork db --count 3", for_guest=True)
def fork(
    template: Annotated[
        str,
        Argument(
            metavar="TEMPLATE",
            help="a template's name",
            autocompletion=complete_templates,
        ),
    ],
    words: Annotated[
        list[str] | None,
        Argument(metavar="[COMMAND…]", help="what to run in the guest"),
    ] = None,
    name: Annotated[
        str | None, Option(help="the fork's name; default: TEMPLATE-1, …")
    ] = None,
    count: Annotated[int, Option(min=1, max=1000, help="how many")] = 1,
    memory: flags.Memory = None,
    cpus: flags.Cpus = None,
    no_stdin: NoStdin = False,
    interactive: Interactive = False,
    tty: Tty = False,
) -> None:
    """Start VMs from a template: each goes on where its guest was frozen.

    They stay until `stop` and `rm`. With a COMMAND they are throwaway VMs instead,
    all at once: what they say is printed in their order, the status is the worst.
    """
    from qemuctl.spec import parse_cpus, parse_memory, validate
    from qemuctl.templates.catalog import find
    from qemuctl.templates.fork import check_same

    found = find(template)
    asked = {"memory": parse_memory(memory)} if memory else {}
    asked |= {"cpu": parse_cpus(cpus)} if cpus else {}
    check_same(found, validate({"name": "fork", **asked}))
    if words:
        if name is not None:
            raise UsageError("a fork for one command has no name to keep")
        typed = Typed(no_stdin, interactive, tty)
        stays = f"qemuctl fork {template}, then qemuctl console"
        typed.check(words, stays)
        raise SystemExit(run_async(_run(found, words, count, typed)))
    run_async(_create(found, _names(template, name, count)))


def _names(template: str, name: str | None, count: int) -> list[str]:
    """Names that are free now, one for each fork."""
    from itertools import count as numbers
    from itertools import islice

    from qemuctl.registry.vms import names
    from qemuctl.spec import validate_name

    if name is not None and count == 1:
        return [name]
    taken = set(names())
    free = (f"{name or template}-{number}" for number in numbers(1))
    return [
        validate_name(item)
        for item in islice((item for item in free if item not in taken), count)
    ]


async def _create(template: Template, names: list[str]) -> None:
    from qemuctl.templates.catalog import current
    from qemuctl.templates.fork import create_fork

    with working(f"starting {', '.join(names[:3])}", say_after=3.0) as status:
        template = await current(template, progress=note, status=status)
        for name in names:
            status(f"starting {name}")
            vm = await create_fork(template, name)
            await vm.close()
            print(name, flush=True)


async def _run(template: Template, words: list[str], count: int, typed: Typed) -> int:
    from qemuctl.cli.in_guest import run_command
    from qemuctl.templates.catalog import current
    from qemuctl.templates.fork import begin_fork

    text = f"starting a fork of {template.name}"
    with working(text, say_after=3.0) as status:
        template = await current(template, progress=note, status=status)
        if count > 1:
            status(f"running in {count} forks of {template.name}")
            return _told(await _many(template, words, count))
        attached = await begin_fork(template)
    async with attached as vm:
        return await run_command(vm, words, typed)


async def _many(
    template: Template, words: list[str], count: int
) -> list[Result | BaseException]:
    """Runs a command in each of many forks, all at once."""
    from qemuctl.templates.fork import fork as forking

    # Each start takes a processor for a moment; more of them would only be late.
    turns = asyncio.Semaphore(cpu_count())

    async def one() -> Result:
        async with contextlib.AsyncExitStack() as stack:
            async with turns:
                vm = await stack.enter_async_context(forking(template))
            return await vm.unless_ended(vm.agent.run(words))

    return await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)


def _told(results: list[Result | BaseException]) -> int:
    """Prints what each fork said; the worst status."""
    worst = 0
    for number, result in enumerate(results, 1):
        if isinstance(result, QemuctlError):
            note(f"error: fork {number}: {result.message}")
            worst = max(worst, result.exit_status)
        elif isinstance(result, BaseException):
            raise result
        else:
            sys.stdout.buffer.write(result.stdout)
            sys.stderr.buffer.write(result.stderr)
            worst = max(worst, result.exit_status)
    return worst
