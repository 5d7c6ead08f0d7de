"""Everything about power: `start`, `stop`, `kill`, `pause`, `resume`, …"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qemuctl.cli.app import Json, Names, Timeout, command, seconds
from qemuctl.cli.output import building, note, print_json, working
from qemuctl.cli.running import for_each, run_async

if TYPE_CHECKING:
    from qemuctl.vm.power import StopReport
    from qemuctl.vm.resolve import Device

_HOW = {
    "agent": "its guest shut down (agent)",
    "acpi": "its guest shut down (power button)",
    "ssh": "its guest shut down (ssh)",
    "quit": "ended by QMP quit",
    "term": "ended by SIGTERM",
    "kill": "ended by SIGKILL",
}


@command("start", example="qemuctl start web")
def start(
    names: Names,
    paused: Annotated[
        bool, typer.Option("--paused", help="do not let the guest run yet")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="until its agent answers")
    ] = False,
    boot: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="try first this time: cdrom, disk, network"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="from its disks, its saved state forgotten")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    timeout: Timeout = "120",
) -> None:
    """Start VMs; they outlive this command and this terminal.

    One that was saved goes on from there.
    """

    def start_one(name: str) -> None:
        if fresh and not yes:
            _ask_to_forget(name)
        options = {"paused": paused, "boot": _kind(boot), "fresh": fresh}
        run_async(_start(name, options, wait and not paused, seconds(timeout)))

    for_each(names, start_one)


def _ask_to_forget(name: str) -> None:
    """Asks before a saved state is lost. Raises UsageError where nobody can answer."""
    import sys

    from qemuctl.errors import UsageError
    from qemuctl.process import held
    from qemuctl.vm.definitions import find
    from qemuctl.vm.saved import is_saved

    paths = find(name)
    if held(paths.lock) or not is_saved(paths):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{name} was saved, and what its guest was doing would be lost",
            hint=f"if that is meant: qemuctl start {name} --fresh --yes",
        )
    if not typer.confirm(f"forget where the guest of {name} was saved?", err=True):
        note(f"{name} is off, and still saved")
        raise SystemExit(1)


def _kind(boot: str | None) -> Device | None:
    from qemuctl.errors import UsageError

    match boot:
        case "cdrom" | "disk" | "network" | None:
            return boot
    raise UsageError(f"cannot boot from this: {boot}", hint="cdrom, disk or network")


async def _start(
    name: str, options: dict[str, Any], wait: bool, patience: float
) -> None:
    from qemuctl.cli.notices import say_accelerator, say_gone_on
    from qemuctl.vm.attach import attach
    from qemuctl.vm.definitions import load
    from qemuctl.vm.launch import start as starting

    progress = building("building its image, once:")
    with working(f"starting {name}") as status:
        vm = await starting(name, progress=progress, **options)
        was_on = vm is None
        async with vm or await attach(name) as vm:
            if wait:
                status(f"waiting for the agent of {name}")
                await vm.wait_ready(timeout=patience)
            record = vm.record
            if record.continued and not was_on:
                return await say_gone_on(vm)
            state = await vm.state()
    if not was_on:
        say_accelerator(record.accel_reason, load(name).accel)
    forwards = f", {', '.join(record.forwards)}" if record.forwards else ""
    note(f"{name} is {'on already: ' if was_on else ''}{state}{forwards}")
    return None


@command("stop", example="qemuctl stop web --timeout 60")
def stop(names: Names, timeout: Timeout = "60", json: Json = False) -> None:
    """Stop VMs: agent, power button, then quit, TERM, KILL; says which did it.

    --timeout is how long the guest gets to shut down by itself; 0 skips that.
    """
    reports = []

    def stop_one(name: str) -> None:
        report = run_async(power(name, "stop", timeout=seconds(timeout)))
        reports.append(_facts(name, report))
        if not json:
            _say_stopped(name, report)

    try:
        for_each(names, stop_one)
    finally:
        if json:
            print_json(reports[0] if len(names) == 1 and reports else reports)


@command("kill", example="qemuctl kill web")
def kill(names: Names) -> None:
    """End VMs at once with SIGKILL, as if their power had failed."""
    for_each(names, lambda name: _say_stopped(name, run_async(power(name, "kill"))))


def _facts(name: str, report: StopReport | None) -> dict[str, object]:
    return {
        "name": name,
        "step": report.step if report else None,
        "seconds": round(report.seconds, 3) if report else 0,
        "status": report.outcome.status if report else None,
        "ended": report.outcome.text if report else None,
    }


def _say_stopped(name: str, report: StopReport | None) -> None:
    if report is None:
        note(f"{name} is off already")
    else:
        note(f"stopped {name} in {report.seconds:.1f} s: {_HOW[report.step]}")
        if report.unreachable and report.step != "ssh":
            note(
                f"its sockets could not be seen from here, so the guest of {name} was "
                "not asked: another /tmp, or one that was cleaned"
            )


@command("pause", example="qemuctl pause web")
def pause(names: Names) -> None:
    """Stop the virtual CPUs of VMs; their memory stays."""

    def pause_one(name: str) -> None:
        done = run_async(power(name, "pause"))
        note(f"{name} is paused" + ("" if done else " already"))

    for_each(names, pause_one)


@command("resume", example="qemuctl resume web")
def resume(names: Names) -> None:
    """Let paused VMs run again."""

    def resume_one(name: str) -> None:
        done = run_async(power(name, "resume"))
        note(f"{name} is running" + ("" if done else " already"))

    for_each(names, resume_one)


@command("reset", example="qemuctl reset web")
def reset(names: Names) -> None:
    """Press the reset button: the guest is not asked."""

    def reset_one(name: str) -> None:
        run_async(power(name, "reset"))
        note(f"{name} was reset")

    for_each(names, reset_one)


@command("reboot", example="qemuctl reboot web")
def reboot(names: Names, timeout: Timeout = "60") -> None:
    """Ask the guest to reboot, by its agent or else by Ctrl-Alt-Del."""

    def reboot_one(name: str) -> None:
        way = run_async(power(name, "reboot", timeout=seconds(timeout)))
        note(f"{name} reboots" + (f" (asked by its {way})" if way else ""))

    for_each(names, reboot_one)


async def power(name: str, verb: str, **options: Any) -> Any:
    """Carries out one verb of the power facet on a VM that may be off."""
    from qemuctl.process import at_work, held
    from qemuctl.vm.attach import attach
    from qemuctl.vm.definitions import find
    from qemuctl.vm.power import kill_unknown
    from qemuctl.vm.record import Record
    from qemuctl.vm.states import Action, State, require

    if not held(find(name).lock):
        require(Action(verb), State.OFF, name)
        return None
    paths = find(name)
    if at_work(paths.lock):
        require(Action(verb), State.BUSY, name)
    if verb == "kill" and Record.read(paths.record) is None:
        await kill_unknown(paths)
        return None
    with working(f"{verb} {name}"):
        async with await attach(name, Action(verb)) as vm:
            return await getattr(vm.power, verb)(**options)
