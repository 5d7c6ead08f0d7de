"""Everything about power: `start`, `stop`, `kill`, `pause`, `resume`, …"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Option, command
from qemuctl.cli.output import building, confirmed, note, print_json, working
from qemuctl.cli.parameters import Json, Names, SomeNames, Timeout, seconds
from qemuctl.cli.running import for_each, run_async

if TYPE_CHECKING:
    from qemuctl.power.stop import StopReport
    from qemuctl.registry.disks.resolve import Device
    from qemuctl.vm.vm import Vm

All = Annotated[bool, Option("--all", help="every VM that is on")]
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
        bool, Option("--paused", help="do not let the guest run yet")
    ] = False,
    wait: Annotated[bool, Option("--wait", help="until its agent answers")] = False,
    boot: Annotated[
        str | None,
        Option(metavar="KIND", help="try first this time: cdrom, disk, network"),
    ] = None,
    fresh: Annotated[
        bool, Option("--fresh", help="from its disks, its saved state forgotten")
    ] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="do not ask")] = False,
    timeout: Timeout = "120",
    json: Json = False,
) -> None:
    """Start VMs; they outlive this command and this terminal.

    One that was saved goes on from there.
    """

    def start_one(name: str) -> tuple[dict[str, object], str]:
        if fresh and not yes:
            _ask_to_forget(name)
        options = {"paused": paused, "boot": _kind(boot), "fresh": fresh}
        work = _start(name, options, wait and not paused, seconds(timeout))
        return run_async(work)

    told(names, start_one, as_json=json)


def _ask_to_forget(name: str) -> None:
    """Asks before a saved state is lost. Raises UsageError where nobody can answer."""
    import sys

    from qemuctl.errors import UsageError
    from qemuctl.process import held
    from qemuctl.registry.records.saved_marker import is_saved
    from qemuctl.registry.vms import find

    paths = find(name)
    if held(paths.lock) or not is_saved(paths):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{name} was saved, and what its guest was doing would be lost",
            hint=f"if that is meant: qemuctl start {name} --fresh --yes",
        )
    if not confirmed(f"forget where the guest of {name} was saved?"):
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
) -> tuple[dict[str, object], str]:
    from qemuctl.boot.start import start as starting
    from qemuctl.cli.notices import gone_on, say_accelerator
    from qemuctl.registry.vms import load
    from qemuctl.vm.attach import attach

    progress = building("building its image, once:")
    with working(f"starting {name}") as status:
        vm = await starting(name, progress=progress, **options)
        was_on = vm is None
        async with vm or await attach(name) as vm:
            if wait:
                status(f"waiting for the agent of {name}")
                await wait_ready(vm, patience)
            record, state = vm.record, await vm.state()
            continued = record.continued and not was_on
            words = await gone_on(vm) if continued else None
    if not was_on and not continued:
        say_accelerator(record.accel_reason, load(name).accel)
    facts: dict[str, object] = {
        "state": state, "changed": not was_on, "continued": continued,
        "pid": record.qemu.pid, "accel": record.accel, "forwards": record.forwards,
    }  # fmt: skip
    forwards = f", {', '.join(record.forwards)}" if record.forwards else ""
    was = "on already: " if was_on else ""
    return facts, words or f"{name} is {was}{state}{forwards}"


async def wait_ready(vm: Vm, patience: float) -> None:
    """Waits for the guest's agent, or for its ssh server where there is none."""
    from qemuctl.errors import NotReady

    try:
        await vm.wait_ready(timeout=patience)
    except NotReady as error:
        if not error.by_ssh:
            raise
        note(f"{error.message}: {error.hint}")


@command("stop", example="qemuctl stop web --timeout 60")
def stop(
    names: SomeNames = None,
    every: All = False,
    timeout: Timeout = "60",
    json: Json = False,
) -> None:
    """Stop VMs: agent, power button, then quit, TERM, KILL; says which did it.

    --timeout is how long the guest gets to shut down by itself; 0 skips that.
    """

    def stop_one(name: str) -> tuple[dict[str, object], str]:
        report = run_async(power(name, "stop", timeout=seconds(timeout)))
        return _ended_facts(report), _ended_words(name, report)

    told(chosen(names, every), stop_one, as_json=json, as_list=every)


@command("kill", example="qemuctl kill web")
def kill(names: SomeNames = None, every: All = False, json: Json = False) -> None:
    """End VMs at once with SIGKILL, as if their power had failed."""

    def kill_one(name: str) -> tuple[dict[str, object], str]:
        report = run_async(power(name, "kill"))
        return _ended_facts(report), _ended_words(name, report)

    told(chosen(names, every), kill_one, as_json=json, as_list=every)


def chosen(names: list[str] | None, every: bool) -> list[str]:
    """The VMs that are named, or with ``every`` those that are on and belong to no
    other process. Raises UsageError."""
    from qemuctl.errors import UsageError
    from qemuctl.vm.listing import listing

    if bool(names) == every:
        raise UsageError("give either names of VMs or --all")
    if names:
        return names
    return [entry.name for entry in listing(include_off=False) if not entry.throwaway]


def told(
    names: list[str],
    work: Callable[[str], tuple[dict[str, object], str]],
    *,
    as_json: bool,
    as_list: bool = False,
) -> None:
    """Does ``work`` for every name, and tells what it gives: facts in JSON, an object
    for one name and a list for several or ``as_list``, or a line of words each."""
    facts: list[dict[str, object]] = []

    def tell(name: str) -> None:
        found, words = work(name)
        facts.append({"name": name, **found})
        if not as_json:
            note(words)

    try:
        for_each(names, tell)
    finally:
        single = len(names) == 1 and not as_list
        if as_json and (facts or not single):
            print_json(facts[0] if single else facts)


def _ended_facts(report: StopReport | None) -> dict[str, object]:
    return {
        "step": report.step if report else None,
        "seconds": round(report.seconds, 3) if report else 0,
        "status": report.outcome.status if report else None,
        "ended": report.outcome.text if report else None,
    }


def _ended_words(name: str, report: StopReport | None) -> str:
    if report is None:
        return f"{name} is off already"
    words = f"stopped {name} in {report.seconds:.1f} s: {_HOW[report.step]}"
    if report.unreachable and report.step != "ssh":
        words += (
            f"\nits sockets could not be seen from here, so the guest of {name} was "
            "not asked: another /tmp, or one that was cleaned"
        )
    return words


@command("pause", example="qemuctl pause web")
def pause(names: SomeNames = None, every: All = False, json: Json = False) -> None:
    """Stop the virtual CPUs of VMs; their memory stays."""

    def pause_one(name: str) -> tuple[dict[str, object], str]:
        done = run_async(power(name, "pause"))
        words = f"{name} is paused" + ("" if done else " already")
        return {"state": "paused", "changed": bool(done)}, words

    told(chosen(names, every), pause_one, as_json=json, as_list=every)


@command("resume", example="qemuctl resume web")
def resume(names: SomeNames = None, every: All = False, json: Json = False) -> None:
    """Let paused VMs run again."""

    def resume_one(name: str) -> tuple[dict[str, object], str]:
        done = run_async(power(name, "resume"))
        words = f"{name} is running" + ("" if done else " already")
        return {"state": "running", "changed": bool(done)}, words

    told(chosen(names, every), resume_one, as_json=json, as_list=every)


@command("reset", example="qemuctl reset web")
def reset(names: Names, json: Json = False) -> None:
    """Press the reset button: the guest is not asked."""

    def reset_one(name: str) -> tuple[dict[str, object], str]:
        run_async(power(name, "reset"))
        return {}, f"{name} was reset"

    told(names, reset_one, as_json=json)


@command("reboot", example="qemuctl reboot web")
def reboot(names: Names, timeout: Timeout = "60", json: Json = False) -> None:
    """Ask the guest to reboot, by its agent or else by Ctrl-Alt-Del."""

    def reboot_one(name: str) -> tuple[dict[str, object], str]:
        way = run_async(power(name, "reboot", timeout=seconds(timeout)))
        return {"way": way}, f"{name} reboots" + (f" (asked by its {way})" * bool(way))

    told(names, reboot_one, as_json=json)


async def power(name: str, verb: str, **options: Any) -> Any:
    """Carries out one verb of the power facet on a VM that may be off."""
    from qemuctl.process import at_work, held
    from qemuctl.registry.records.process_record import Record
    from qemuctl.registry.states import Action, State, require
    from qemuctl.registry.vms import find
    from qemuctl.vm.attach import attach

    if not held(find(name).lock):
        require(Action(verb), State.OFF, name)
        return None
    paths = find(name)
    if at_work(paths.lock):
        require(Action(verb), State.BUSY, name)
    if verb == "kill" and Record.read(paths.record) is None:
        from qemuctl.power.stop import kill_unknown

        await kill_unknown(paths)
        return None
    with working(f"{verb} {name}"):
        async with await attach(name, Action(verb)) as vm:
            done = await getattr(vm.power, verb)(**options)
            problem = await vm.clock if vm.clock is not None else None
    if problem is not None:
        note(f"the clock of {name} is behind: {problem}")
    return done
