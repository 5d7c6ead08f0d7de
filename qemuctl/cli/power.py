"""Everything about power: `start`, `stop`, `kill`, `pause`, `resume`, …"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qemuctl.cli.app import Json, Names, Timeout, command, seconds
from qemuctl.cli.output import building, note, print_json, working
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.vm.power import StopReport

_HOW = {
    "agent": "its guest shut down (agent)",
    "acpi": "its guest shut down (power button)",
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
    timeout: Timeout = "120",
) -> None:
    """Start VMs; they outlive this command and this terminal."""
    for name in names:
        run_async(_start(name, paused, wait and not paused, seconds(timeout)))


async def _start(name: str, paused: bool, wait: bool, patience: float) -> None:
    from qemuctl.cli.notices import say_accelerator
    from qemuctl.vm.attach import attach
    from qemuctl.vm.definitions import load
    from qemuctl.vm.launch import start as starting

    progress = building("building its image, once:")
    with working(f"starting {name}") as status:
        vm = await starting(name, paused=paused, progress=progress)
        was_on = vm is None
        async with vm or await attach(name) as vm:
            if wait:
                status(f"waiting for the agent of {name}")
                await vm.wait_ready(timeout=patience)
            state = await vm.state()
            record = vm.record
    if not was_on:
        say_accelerator(record, load(name).accel)
    forwards = f", {', '.join(record.forwards)}" if record.forwards else ""
    note(f"{name} is {'on already: ' if was_on else ''}{state}{forwards}")


@command("stop", example="qemuctl stop web --timeout 60")
def stop(names: Names, timeout: Timeout = "60", json: Json = False) -> None:
    """Stop VMs: agent, power button, then quit, TERM, KILL; says which did it.

    --timeout is how long the guest gets to shut down by itself; 0 skips that.
    """
    for name in names:
        report = run_async(power(name, "stop", timeout=seconds(timeout)))
        _say_stopped(name, report, json)


@command("kill", example="qemuctl kill web")
def kill(names: Names) -> None:
    """End VMs at once with SIGKILL, as if their power had failed."""
    for name in names:
        _say_stopped(name, run_async(power(name, "kill")), False)


def _say_stopped(name: str, report: StopReport | None, json: bool) -> None:
    if json:
        print_json({
            "name": name,
            "step": report.step if report else None,
            "seconds": round(report.seconds, 3) if report else 0,
            "status": report.outcome.status if report else None,
            "ended": report.outcome.text if report else None,
        })  # fmt: skip
    elif report is None:
        note(f"{name} is off already")
    else:
        note(f"stopped {name} in {report.seconds:.1f} s: {_HOW[report.step]}")


@command("pause", example="qemuctl pause web")
def pause(names: Names) -> None:
    """Stop the virtual CPUs of VMs; their memory stays."""
    for name in names:
        done = run_async(power(name, "pause"))
        note(f"{name} is paused" + ("" if done else " already"))


@command("resume", example="qemuctl resume web")
def resume(names: Names) -> None:
    """Let paused VMs run again."""
    for name in names:
        done = run_async(power(name, "resume"))
        note(f"{name} is running" + ("" if done else " already"))


@command("reset", example="qemuctl reset web")
def reset(names: Names) -> None:
    """Press the reset button: the guest is not asked."""
    for name in names:
        run_async(power(name, "reset"))
        note(f"{name} was reset")


@command("reboot", example="qemuctl reboot web")
def reboot(names: Names, timeout: Timeout = "60") -> None:
    """Ask the guest to reboot, by its agent or else by Ctrl-Alt-Del."""
    for name in names:
        way = run_async(power(name, "reboot", timeout=seconds(timeout)))
        note(f"{name} reboots (asked by its {way})")


async def power(name: str, verb: str, **options: Any) -> Any:
    """Carries out one verb of the power facet on a VM that may be off."""
    from qemuctl.process import held
    from qemuctl.vm.attach import attach
    from qemuctl.vm.definitions import find
    from qemuctl.vm.states import Action, State, require

    if not held(find(name).lock):
        require(Action(verb), State.OFF, name)
        return None
    with working(f"{verb} {name}"):
        async with await attach(name) as vm:
            return await getattr(vm.power, verb)(**options)
