"""`ls`, `info` and `argv`: looking, without touching."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli import flags
from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import note, print_fields, print_json
from qemuctl.cli.parameters import Json, Name, complete_names
from qemuctl.cli.running import run_async
from qemuctl.units import format_age, format_size

if TYPE_CHECKING:
    from qemuctl.paths import VmPaths
    from qemuctl.registry.records.process_record import Record
    from qemuctl.registry.states import State
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm


@command("ls", example="qemuctl ls -a")
def list_vms(
    names: Annotated[
        list[str] | None,
        Argument(metavar="[NAME…]", help="only these", autocompletion=complete_names),
    ] = None,
    include_off: Annotated[
        bool, Option("--all", "-a", help="also those that are off")
    ] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="names only")] = False,
    json: Json = False,
) -> None:
    """List VMs that are on, or with -a all of them, or those that are named."""
    from qemuctl.cli.listing import print_listing

    print_listing(
        include_off=include_off, names_only=quiet, as_json=json, names=names or ()
    )


@command("info", example="qemuctl info web --json")
def info(name: Name, json: Json = False) -> None:
    """Show one VM: state, process, accelerator, ports, files, how it ended.

    What its guest's agent tells comes last; one that does not answer within
    a second is not waited for.
    """
    from qemuctl.cli.inside import guest_fields

    facts = run_async(_facts(name))
    if json:
        print_json(facts)
        return
    guest = guest_fields(facts.pop("guest", None))
    shown = {
        **facts,
        "memory": format_size(facts["memory"]),
        "up": format_age(facts["uptime"]) if facts.get("uptime") is not None else None,
        "resident": f"{facts['resident'] >> 20}M" if facts.get("resident") else None,
        "forwards": "\n".join(facts.get("forwards") or ()),
        "disks": "\n".join(facts["disks"]),
    }
    differs = shown.pop("differences", None) or {}
    unknown = shown.pop("differences_unknown", None)
    lines = [
        f"{key}: {pair['now']} now, {pair['configured']} configured"
        for key, pair in differs.items()
    ]
    shown["differs"] = f"not known: {unknown}" if unknown else "\n".join(lines)
    # The reason begins with the accelerator's name.
    shown["accel"] = shown.pop("accel_reason", None)
    shown["free ports"] = shown.pop("free_ports", None)
    shown.pop("uptime", None)
    print_fields(shown | guest)


async def _facts(name: str) -> dict[str, Any]:
    from qemuctl.connection.monitors import state_of
    from qemuctl.process import held
    from qemuctl.registry.records.outcome import outcome
    from qemuctl.registry.records.process_record import Record
    from qemuctl.registry.records.saved_marker import is_saved
    from qemuctl.registry.vms import find, load
    from qemuctl.vm.listing import SAVED

    paths = find(name)
    spec = load(name)
    facts: dict[str, Any] = {"name": name, "state": None, **_written(spec)}
    record = Record.read(paths.record) if held(paths.lock) else None
    if record is not None:
        facts |= await _running_facts(paths, record, spec)
    else:
        facts["state"] = await state_of(paths)
        ended, saved = outcome(paths), is_saved(paths)
        text = ended.text if ended else None
        facts |= {
            "ended": SAVED if saved else text,
            "status": ended.status if ended else None,
            "saved": str(paths.saved) if saved else None,
        }
    facts |= {
        "disks": [str(path) for path in sorted(paths.disks.glob("*"))],
        "spec": str(paths.spec),
    }
    return facts


async def _running_facts(paths: VmPaths, record: Record, spec: Spec) -> dict[str, Any]:
    """What a VM with a process has beside its spec: QEMU and the guest's agent are
    asked side by side, on a connection each."""
    import asyncio
    import contextlib
    import time

    from qemuctl.cli.inside import guest_facts
    from qemuctl.errors import AgentError
    from qemuctl.process.usage import usage
    from qemuctl.vm.listing import problem_of
    from qemuctl.vm.vm import Vm

    async with Vm(paths, record) as vm:
        # It looks ten times a second whether somebody is there; and then at once.
        with contextlib.suppress(AgentError):
            await vm.agent.connect()
        state = await vm.state(connect=True)
        ports, differences, guest = await asyncio.gather(
            _free_ports(vm, state),
            _differences(vm, state, spec),
            guest_facts(vm, state),
        )
    used = usage(record.qemu)
    return {
        "state": state,
        "machine": record.machine,
        "accel": record.accel,
        "accel_reason": record.accel_reason,
        "qemu": record.version,
        "pid": record.qemu.pid,
        "resident": used.resident_bytes if used else None,
        "uptime": round(time.time() - record.started_at, 1),
        "forwards": record.forwards,
        "owner": f"process {record.owner.pid}" if record.owner else None,
        "sockets": str(paths.run),
        "free_ports": ports,
        "problem": problem_of(paths, state),
        **differences,
        "guest": guest,
    }


async def _free_ports(vm: Vm, state: State) -> int | None:
    """How many devices can be plugged in now; None when QEMU does not say."""
    import asyncio

    from qemuctl.errors import QmpError, StateError, WaitTimeout
    from qemuctl.registry.states import State

    if state in (
        State.STARTING,
        State.STOPPING,
        State.UNRESPONSIVE,
        State.UNREACHABLE,
        State.SNAPSHOTTING,
    ):
        return None
    try:
        async with asyncio.timeout(1.0):
            return len(await vm.bus.free())
    except (QmpError, StateError, WaitTimeout, TimeoutError):
        return None


async def _differences(vm: Vm, state: State, spec: Spec) -> dict[str, Any]:
    """What a restart would change; None, and why, when nobody tells within a second.

    A VM that only just starts or ends has none that anybody could use.
    """
    import asyncio

    from qemuctl.errors import QemuctlError, QmpError, WaitTimeout
    from qemuctl.registry.states import State
    from qemuctl.vm.spec_diff import differences_from

    if state in (State.STARTING, State.STOPPING):
        return {"differences": None}
    unknown = "QEMU does not answer"
    if state is State.UNREACHABLE:
        unknown = "its sockets cannot be seen from here"
    elif state not in (State.UNRESPONSIVE, State.SNAPSHOTTING):
        try:
            async with asyncio.timeout(1.0):
                found = await differences_from(vm, spec)
            every = {k: {"now": a, "configured": b} for k, (a, b) in found.items()}
            return {"differences": every}
        except (QmpError, WaitTimeout, TimeoutError):
            pass
        except (QemuctlError, OSError) as error:
            unknown = str(getattr(error, "message", error))
    return {"differences": None, "differences_unknown": unknown}


def _written(spec: Spec) -> dict[str, Any]:
    return {
        "image": spec.image,
        "machine": spec.machine,
        "cpus": spec.cpu.count,
        "memory": spec.memory.size,
    }


@command("argv", example="qemuctl argv web | bash")
def show_argv(
    name: Annotated[
        str | None,
        Argument(metavar="[NAME]", help="the VM's name", autocompletion=complete_names),
    ] = None,
    file: flags.File = None,
    json: Json = False,
) -> None:
    """Print QEMU's exact command line, to be pasted into a shell.

    Changes nothing: no image is built and no disk made.
    """
    from qemuctl.cmdline import format_argv
    from qemuctl.errors import UsageError
    from qemuctl.paths import VmPaths
    from qemuctl.registry.plan import draft
    from qemuctl.registry.vms import find, load

    if (name is None) == (file is None):
        raise UsageError("give either NAME or -f FILE")
    if file is not None:
        spec, _ = flags.read_spec(file)
        paths = VmPaths.of(spec.name)
    else:
        assert name is not None
        spec, paths = load(name), find(name)
    plan = draft(spec, paths)
    argv = plan.argv()
    if json:
        print_json(argv)
        return
    print(format_argv(argv, folders=plan.machine.folders))
    for path in (plan.spec.boot.kernel, *(disk.path for disk in plan.spec.disks)):
        if path is not None and not Path(path).exists():
            note(f"note: made at its start, not there yet: {path}")
