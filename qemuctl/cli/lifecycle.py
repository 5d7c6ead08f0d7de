"""`create`, `edit`, `rename`, `rm`, and everything about power."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qemuctl.cli import flags
from qemuctl.cli.app import Json, Name, Names, Timeout, app, example, seconds
from qemuctl.cli.output import building, note, print_json, working
from qemuctl.cli.running import run_async
from qemuctl.errors import HostError, QemuctlError, StateError

if TYPE_CHECKING:
    from qemuctl.spec import Spec
    from qemuctl.vm.power import StopReport

_HOW = {
    "agent": "its guest shut down (agent)",
    "acpi": "its guest shut down (power button)",
    "quit": "ended by QMP quit",
    "term": "ended by SIGTERM",
    "kill": "ended by SIGKILL",
}


@app.command(
    epilog=example(
        "qemuctl create web --image tiny --memory 512M --cpus 2 --disk size=1G"
    )
)
def create(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="its name")
    ] = None,
    file: flags.File = None,
    image: Annotated[str | None, typer.Option(help="tiny, or a disk image")] = None,
    memory: flags.Memory = None,
    cpus: flags.Cpus = None,
    disk: flags.Disks = None,
    nic: flags.Nics = None,
    forward: flags.Forwards = None,
    cdrom: flags.Cdrom = None,
    kernel: flags.Kernel = None,
    initrd: flags.Initrd = None,
    append: flags.Append = None,
    machine: flags.MachineType = None,
    accel: flags.Accel = None,
    display: flags.Display = None,
    qemu_arg: flags.QemuArgs = None,
) -> None:
    """Create a VM, from flags or a YAML file or both; it is not started."""
    given = dict(locals())
    spec, text = flags.spec_from(name=name, image=image, file=file, flags=given)
    _create(spec, text)
    note(f"created {spec.name}; start it with: qemuctl start {spec.name}")


def _create(spec: Spec, text: str | None) -> None:
    from qemuctl.paths import VmPaths
    from qemuctl.vm import definitions
    from qemuctl.vm.plan import draft, make_disks

    if VmPaths.of(spec.name).state.exists():
        raise definitions.name_in_use(spec.name)
    draft(spec, VmPaths.of(spec.name))
    paths = definitions.create(spec, text)
    try:
        make_disks(spec, paths)
    except BaseException:
        definitions.remove(spec.name)
        raise


@app.command(epilog=example("EDITOR=nano qemuctl edit web"))
def edit(name: Name) -> None:
    """Edit a VM's spec in $VISUAL or $EDITOR; a wrong one is not taken."""
    from qemuctl.process import held
    from qemuctl.spec import parse_spec
    from qemuctl.vm import definitions
    from qemuctl.vm.plan import draft

    paths = definitions.find(name)
    before = paths.spec.read_text()
    after = _edited(before, f"{name}.yaml")
    if after == before:
        note("nothing changed")
        return
    try:
        spec = parse_spec(after, source=f"{name}.yaml", base=Path.cwd())
        if spec.name != name:
            raise StateError(
                f"edit {name}", "present", "the name cannot change here",
                hint=f"qemuctl rename {name} {spec.name}",
            )  # fmt: skip
        draft(spec, paths)
    except QemuctlError as error:
        kept = Path(tempfile.mkdtemp(prefix="qemuctl-")) / f"{name}.yaml"
        kept.write_text(after)
        error.hint = "\n".join(filter(None, [error.hint, f"your text is kept: {kept}"]))
        raise
    definitions.replace(name, after)
    note(f"changed {name}" + (", from its next start" if held(paths.lock) else ""))


def _edited(text: str, name: str) -> str:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="qemuctl-") as folder:
        path = Path(folder) / name
        path.write_text(text)
        try:
            done = subprocess.run([*shlex.split(editor), str(path)], check=False)
        except OSError as error:
            raise HostError(
                f"no editor: {editor}: {error.strerror}", hint="set $EDITOR"
            ) from error
        if done.returncode != 0:
            raise HostError(
                f"the editor failed with status {done.returncode}: {editor}"
            )
        return path.read_text()


@app.command(epilog=example("qemuctl rename web www"))
def rename(
    name: Name, new: Annotated[str, typer.Argument(metavar="NEW", help="the new name")]
) -> None:
    """Rename a VM that is off."""
    from qemuctl.vm.definitions import rename as renaming

    renaming(name, new)
    note(f"{name} is now {new}")


@app.command(epilog=example("qemuctl rm web"))
def rm(
    names: Names,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="kill it first if it is on")
    ] = False,
) -> None:
    """Remove VMs that are off, with the disks that were made for them."""
    from qemuctl.vm import definitions

    for name in names:
        definitions.find(name)
        if force:
            run_async(_power(name, "kill"))
        definitions.remove(name)
        note(f"removed {name}")


@app.command(epilog=example("qemuctl start web"))
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
    from qemuctl.vm.definitions import load
    from qemuctl.vm.launch import attach
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


@app.command(epilog=example("qemuctl stop web --timeout 60"))
def stop(names: Names, timeout: Timeout = "60", json: Json = False) -> None:
    """Stop VMs: agent, power button, then quit, TERM, KILL; says which did it.

    --timeout is how long the guest gets to shut down by itself; 0 skips that.
    """
    for name in names:
        report = run_async(_power(name, "stop", timeout=seconds(timeout)))
        _say_stopped(name, report, json)


@app.command(epilog=example("qemuctl kill web"))
def kill(names: Names) -> None:
    """End VMs at once with SIGKILL, as if their power had failed."""
    for name in names:
        _say_stopped(name, run_async(_power(name, "kill")), False)


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


@app.command(epilog=example("qemuctl pause web"))
def pause(names: Names) -> None:
    """Stop the virtual CPUs of VMs; their memory stays."""
    for name in names:
        done = run_async(_power(name, "pause"))
        note(f"{name} is paused" + ("" if done else " already"))


@app.command(epilog=example("qemuctl resume web"))
def resume(names: Names) -> None:
    """Let paused VMs run again."""
    for name in names:
        done = run_async(_power(name, "resume"))
        note(f"{name} is running" + ("" if done else " already"))


@app.command(epilog=example("qemuctl reset web"))
def reset(names: Names) -> None:
    """Press the reset button: the guest is not asked."""
    for name in names:
        run_async(_power(name, "reset"))
        note(f"{name} was reset")


@app.command(epilog=example("qemuctl reboot web"))
def reboot(names: Names, timeout: Timeout = "60") -> None:
    """Ask the guest to reboot, by its agent or else by Ctrl-Alt-Del."""
    for name in names:
        way = run_async(_power(name, "reboot", timeout=seconds(timeout)))
        note(f"{name} reboots (asked by its {way})")


async def _power(name: str, verb: str, **options: Any) -> Any:
    from qemuctl.process import held
    from qemuctl.vm.definitions import find
    from qemuctl.vm.launch import attach
    from qemuctl.vm.states import Action, State, require

    if not held(find(name).lock):
        require(Action(verb), State.OFF, name)
        return None
    with working(f"{verb} {name}"):
        async with await attach(name) as vm:
            return await getattr(vm.power, verb)(**options)
