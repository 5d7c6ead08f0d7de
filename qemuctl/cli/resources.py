"""`set`, `balloon` and `diff`: memory and processors, now and at the next start."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import note, print_fields, print_json, print_text, working
from qemuctl.cli.parameters import Json, Name, Timeout, seconds
from qemuctl.cli.running import run_async
from qemuctl.cli.scope import Both, Config, Live, scope
from qemuctl.units import MIB, format_rounded, format_size, parse_size

if TYPE_CHECKING:
    from qemuctl.hotplug.memory.results import BalloonReport, MemoryChange
    from qemuctl.registry.edit import Edit
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm

# Seconds to see what an interrupted change has left.
_LOOK = 4.0


@command("set", example="qemuctl set web --memory 1G --cpus 4")
def set_resources(
    name: Name,
    memory: Annotated[
        str | None, Option(metavar="SIZE", help="such as 512M or 2G")
    ] = None,
    cpus: Annotated[int | None, Option(metavar="N", help="how many processors")] = None,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    timeout: Timeout = "60",
    json: Json = False,
) -> None:
    """Change the memory and the processors of a VM, now and for its next start.

    Memory changes by what can do it, and the command says by which: the balloon
    up to the size at start, virtio-mem beyond it where the guest has a driver,
    else DIMMs. The room is memory.max and cpu.max of the spec it was started
    with. The spec changes once the guest has followed. --timeout is for
    the guest; status 3 tells that it may still follow.
    """
    from qemuctl.errors import UsageError
    from qemuctl.registry.edit import preview, reconfigure
    from qemuctl.registry.scope import scope_of

    if memory is None and cpus is None:
        raise UsageError("nothing to set", hint="give --memory SIZE or --cpus N")
    size = None if memory is None else _size(memory)
    if cpus is not None and cpus < 1:
        raise UsageError(f"not a number of processors: {cpus}")
    chosen = scope_of(name, scope(live, config, both))
    if chosen.config:
        preview(name, _edit(size, cpus))
    changes: list[dict[str, Any]] = []
    try:
        if chosen.live:
            run_async(_live(name, size, cpus, seconds(timeout), chosen.config, changes))
        else:
            before = preview(name, lambda spec: spec)
            after = reconfigure(name, _edit(size, cpus))
            changes += _configured(before, after)
            note(f"{name} has it from its next start")
    except BaseException:
        if json and changes:  # what came about before, and what did not
            print_json(changes)
        raise
    if json:
        print_json(changes)


@command("balloon", example="qemuctl balloon web 300M")
def balloon(
    name: Name,
    size: Annotated[
        str | None, Argument(metavar="[SIZE]", help="what its guest may keep")
    ] = None,
    timeout: Timeout = "60",
    wait: Annotated[
        bool,
        Option("--wait/--no-wait", help="--no-wait: only ask for the size"),
    ] = True,
    json: Json = False,
) -> None:
    """Show what the balloon leaves a guest of its memory, or set it.

    The size is that of the memory at start, DIMMs included; nothing of it is
    written to the spec. Status 3 tells that the guest has not given all of it yet.
    """
    wanted = None if size is None else _size(size)
    report = run_async(_balloon(name, wanted, seconds(timeout), wait=wait))
    if json:
        print_json(asdict(report))
    else:
        print_fields(_balloon_fields(report))


@command("diff", example="qemuctl diff web")
def diff(name: Name, json: Json = False) -> None:
    """Show what a restart would change: the spec against the VM that runs.

    One line a field; nothing when there is no difference, or the VM is off. The
    file of a disk stays as large as it is by now, whatever the spec says.
    """
    from qemuctl.vm.spec_diff import differences

    found = run_async(differences(name))
    if json:
        print_json({key: {"now": a, "configured": b} for key, (a, b) in found.items()})
        return
    for key, (now, configured) in found.items():
        print_text(f"{key}: {now} -> {configured}")


def _size(text: str) -> int:
    from qemuctl.errors import UsageError

    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if size < MIB or size % MIB:
        raise UsageError(f"not a whole number of MiB: {text}", hint="write 512M or 2G")
    return size


def _edit(size: int | None, cpus: int | None) -> Edit:
    """The change to the spec. It raises SpecError for more than its own maximum."""
    from qemuctl.errors import SpecError

    def edit(spec: Spec) -> Spec:
        cpu, memory = spec.cpu, spec.memory
        if cpus is not None:
            if cpu.max is not None and cpus > cpu.max:
                raise SpecError(
                    f"too many processors: {cpus}, the spec allows {cpu.max}",
                    key="cpu.max", hint=f"qemuctl edit {spec.name}: cpu.max: {cpus}",
                )  # fmt: skip
            cpu = cpu.model_copy(update={"count": cpus})
        if size is not None:
            if memory.max is not None and size > memory.max:
                most, asked = format_size(memory.max), format_size(size)
                raise SpecError(
                    f"too much memory: {asked}, the spec allows {most}",
                    key="memory.max",
                    hint=f"qemuctl edit {spec.name}: memory.max: {asked}",
                )
            memory = memory.model_copy(update={"size": size})
        return spec.model_copy(update={"cpu": cpu, "memory": memory})

    return edit


def _configured(before: Spec, after: Spec) -> list[dict[str, Any]]:
    """What the next start has otherwise, as JSON."""
    values = {
        "cpus": (before.cpu.count, after.cpu.count),
        "memory": (before.memory.size, after.memory.size),
    }
    return [
        {"what": what, "before": old, "after": new, "by": [], "outcome": "configured"}
        for what, (old, new) in values.items()
        if old != new
    ]


async def _live(
    name: str,
    size: int | None,
    cpus: int | None,
    patience: float,
    written: bool,
    changes: list[dict[str, Any]],
) -> None:
    """Changes the VM that runs, and its spec after each step that came about.

    What came of each is added to ``changes``, as JSON, where it did not too.
    """
    from qemuctl.registry.edit import reconfigure
    from qemuctl.registry.states import Action, require
    from qemuctl.vm.attach import attach

    async with await attach(name, Action.CHANGE) as vm:
        require(Action.CHANGE, await vm.state(), name)
        if cpus is not None:
            await vm.cpus.check(cpus)
        if size is not None:
            await vm.memory.check(size)
        if cpus is not None:
            with working(f"changing the processors of {name}"):
                await _cpus_live(vm, cpus, patience, changes)
            if written:
                reconfigure(name, _edit(None, cpus))
                changes[-1]["configured"] = True
        if size is not None:
            with working(f"changing the memory of {name}"):
                await _memory_live(vm, size, patience, changes)
            if written:
                reconfigure(name, _edit(size, None))
                changes[-1]["configured"] = True


async def _cpus_live(
    vm: Vm, count: int, patience: float, changes: list[dict[str, Any]]
) -> None:
    async def plugged() -> int:
        return (await vm.cpus.now()).plugged

    async with _tried("cpus", plugged, changes) as entry:
        change = await vm.cpus.resize(count, timeout=patience)
        entry |= {
            "before": change.before,
            "after": change.plugged,
            "online": change.online,
            "by": ["hot plug"] * (change.before != change.plugged),
        }
    seen = "" if change.online is None else f", {change.online} online"
    note(f"processors: {change.before} -> {change.plugged}{seen}")


async def _memory_live(
    vm: Vm, size: int, patience: float, changes: list[dict[str, Any]]
) -> None:
    async def actual() -> int:
        return (await vm.memory.now()).actual_bytes

    async with _tried("memory", actual, changes) as entry:
        change = await vm.memory.resize(size, timeout=patience)
        entry |= {
            "before": change.before_bytes,
            "after": change.actual_bytes,
            "by": [str(way) for way in change.ways],
            "why": change.why,
        }
    note(_memory_line(change))


@contextlib.asynccontextmanager
async def _tried(
    what: str, look: Callable[[], Awaitable[int]], changes: list[dict[str, Any]]
) -> AsyncIterator[dict[str, Any]]:
    """The block makes a change and fills in what came of it; an error is told as what
    became of it, with what there is now."""
    from qemuctl.errors import HotplugError, QemuctlError

    entry: dict[str, Any] = {"what": what, "before": await look()}
    entry |= {"after": None, "by": [], "outcome": "done", "configured": False}
    changes.append(entry)
    try:
        yield entry
    except QemuctlError as error:
        outcome = error.outcome if isinstance(error, HotplugError) else "failed"
        entry |= {"outcome": outcome, "error": error.message}
        with contextlib.suppress(QemuctlError):
            entry["after"] = await look()
        raise
    except BaseException:
        entry["outcome"] = "cut off"
        await _tell_what_stays(entry, look)
        raise


async def _tell_what_stays(
    entry: dict[str, Any], look: Callable[[], Awaitable[int]]
) -> None:
    """After Ctrl-C what was plugged in is asked back, and the guest may keep it: Linux
    puts pages of its own, which it cannot move, into new memory at once."""
    import asyncio

    from qemuctl.errors import QemuctlError

    with contextlib.suppress(QemuctlError, TimeoutError):
        async with asyncio.timeout(_LOOK):
            entry["after"] = await look()
    before, after = entry["before"], entry["after"]
    if after in (None, before):
        return
    if entry["what"] == "memory":
        before, after = format_rounded(before), format_rounded(after)
    note(
        f"interrupted: {entry['what']}: {before} -> {after}; "
        "the guest has not undone the rest"
    )


def _memory_line(change: MemoryChange) -> str:
    before, after = map(format_rounded, (change.before_bytes, change.actual_bytes))
    if not change.ways:
        return f"memory: {after} already"
    ways = " and ".join(change.ways)
    return f"memory: {before} -> {after} by {ways} ({change.why})"


async def _balloon(
    name: str, size: int | None, patience: float, *, wait: bool
) -> BalloonReport:
    from qemuctl.registry.states import Action, require
    from qemuctl.vm.attach import attach

    action = Action.QMP if size is None else Action.CHANGE
    async with await attach(name, action) as vm:
        require(action, await vm.state(), name)
        return await vm.memory.balloon(size, timeout=patience, wait=wait)


def _balloon_fields(report: BalloonReport) -> dict[str, object]:
    def size(value: int | None) -> str | None:
        return None if value is None else format_rounded(value)

    fields: dict[str, object] = {
        "requested": size(report.requested_bytes),
        "actual": size(report.actual_bytes),
        "of": size(report.total_bytes),
        "driver": "yes" if report.has_driver else "no: its guest hears nothing",
    }
    guest = report.guest
    if guest is None:
        return fields
    return fields | {
        "guest total": size(guest.total_bytes),
        "guest free": size(guest.free_bytes),
        "guest available": size(guest.available_bytes),
        "guest swap in": size(guest.swap_in_bytes),
        "guest swap out": size(guest.swap_out_bytes),
        "guest faults": guest.minor_faults,
        "guest major faults": guest.major_faults,
    }
