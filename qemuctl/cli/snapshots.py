"""`snapshot`: states of a whole VM that it can go back to."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli.declare import Argument, Option, group
from qemuctl.cli.output import note, print_json, print_table, tell, working
from qemuctl.cli.parameters import Json, Name
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.snapshots.online import Reverted
    from qemuctl.snapshots.tree import Snapshot

snapshot = group("snapshot", "States of a whole VM that it can go back to.")
SnapshotName = Annotated[str, Argument(metavar="SNAP", help="the snapshot's")]

# Seconds after which a wait is told in a pipe too.
_SAY_AFTER = 1.0
_HOLDS = {
    "frozen": "disks only, file systems frozen",
    "crash": "disks only, as after a power cut",
    "off": "disks only, for it was off",
}


@snapshot.command("create", example="qemuctl snapshot create web before")
def create(
    name: Name,
    snap: Annotated[
        str | None,
        Argument(metavar="[SNAP]", help="its name; default: the time"),
    ] = None,
    description: Annotated[
        str, Option(metavar="TEXT", help="what it is good for")
    ] = "",
    disk_only: Annotated[
        bool, Option("--disk-only", help="leave out the RAM of a VM that is on")
    ] = False,
    json: Json = False,
) -> None:
    """Keep a VM as it is now: disks and RAM.

    The VM stands still while its RAM is written. With --disk-only it does not: the
    disks are kept all at one moment, with the guest's file systems frozen if its
    agent can do that. A VM that is off has disks only. Every disk that is written to
    must be qcow2.
    """
    snap = snap or f"{datetime.now(UTC).astimezone():%Y-%m-%d-%H%M%S}"
    with working(f"making the snapshot {snap} of {name}", say_after=_SAY_AFTER):
        made = run_async(_create(name, snap, description, disk_only))
    what = _ram(made) if made.ram_bytes is None else f"{_ram(made)} of RAM"
    words = f"{name}: made the snapshot {snap}: {what}; {', '.join(made.disks)}"
    tell(asdict(made), words, as_json=json)
    if made.ram_bytes is not None and made.fork_of is not None:
        note(f"{name} is a fork of {made.fork_of}: this RAM fits until it is stopped")


@snapshot.command("ls", example="qemuctl snapshot ls web --json")
def list_snapshots(name: Name, json: Json = False) -> None:
    """List a VM's snapshots as a tree: each below the one that it has come from.

    STATE is that of the VM at that time, and * marks the snapshot that the VM was
    made or reverted to last.
    """
    from qemuctl.snapshots.tree import drawn

    rows = run_async(_list(name))
    if json:
        print_json([asdict(row) for row in rows])
        return
    head = ("NAME", "CREATED", "STATE", "RAM", "DESCRIPTION")
    print_table(head, [_row(lines, row) for lines, row in drawn(rows)])


@snapshot.command("revert", example="qemuctl snapshot revert web before")
def revert(name: Name, snap: SnapshotName, json: Json = False) -> None:
    """Go back to a snapshot; what the VM is now is lost.

    With RAM, the VM goes on from there, running or paused as it was, and one that is
    off is started there. With disks only, the VM must be off, and stays so.
    """
    with working(f"reverting {name} to {snap}", say_after=_SAY_AFTER):
        done = run_async(_revert(name, snap))
    tell(asdict(done), f"{name} is {done.state}, as of {snap}", as_json=json)
    if done.clock_problem is not None and not json:
        note(f"its clock is that of the snapshot: {done.clock_problem}")


@snapshot.command("rm", example="qemuctl snapshot rm web before")
def remove(name: Name, snap: SnapshotName, json: Json = False) -> None:
    """Remove a snapshot; the VM stays as it is, and so do later snapshots."""
    with working(f"removing the snapshot {snap} of {name}", say_after=_SAY_AFTER):
        run_async(_remove(name, snap))
    facts = {"name": name, "snapshot": snap}
    tell(facts, f"{name}: removed the snapshot {snap}", as_json=json)


def _is_on(name: str) -> bool:
    from qemuctl.process import runs
    from qemuctl.registry.vms import find

    paths = find(name)
    return runs(paths.lock)


async def _create(name: str, snap: str, description: str, disk_only: bool) -> Snapshot:
    from qemuctl.registry.states import Action
    from qemuctl.snapshots.offline import create_snapshot
    from qemuctl.vm.attach import attach

    if not _is_on(name):
        return await create_snapshot(name, snap, description=description)
    async with await attach(name, Action.SNAPSHOT) as vm:
        return await vm.snapshots.create(
            snap, description=description, disk_only=disk_only
        )


async def _list(name: str) -> list[Snapshot]:
    from qemuctl.errors import QemuctlError, QmpError, StateError, WaitTimeout
    from qemuctl.registry.states import Accepted, Action, admit
    from qemuctl.snapshots.offline import list_snapshots, settle
    from qemuctl.vm.attach import attach

    if not _is_on(name):
        try:
            await settle(name)
        except QemuctlError as error:
            note(error.message + (f"\nhint: {error.hint}" if error.hint else ""))
        return list_snapshots(name)
    try:
        async with await attach(name, Action.FORGET) as vm:
            if admit(Action.FORGET, await vm.state()) == Accepted():
                with contextlib.suppress(QemuctlError):
                    await vm.snapshots.settle()
                return await vm.snapshots.list()
    except (QmpError, StateError, WaitTimeout):
        pass
    return list_snapshots(name)


async def _revert(name: str, snap: str) -> Reverted:
    from qemuctl.boot import at_snapshot
    from qemuctl.registry.states import Action
    from qemuctl.vm.attach import attach

    if not _is_on(name):
        return await at_snapshot.revert(name, snap)
    async with await attach(name, Action.REVERT) as vm:
        return await vm.snapshots.revert(snap)


async def _remove(name: str, snap: str) -> None:
    from qemuctl.registry.states import Action
    from qemuctl.snapshots.offline import remove_snapshot
    from qemuctl.vm.attach import attach

    if not _is_on(name):
        await remove_snapshot(name, snap)
        return
    async with await attach(name, Action.FORGET) as vm:
        await vm.snapshots.remove(snap)


def _row(lines: str, row: Snapshot) -> tuple[str | None, ...]:
    created = datetime.fromtimestamp(row.created_at, UTC).astimezone()
    told = [row.description] if row.description else []
    if row.problem is not None:
        told.append(f"({row.problem})")
    return (
        f"{lines}{row.name}{' *' if row.current else ''}",
        f"{created:%Y-%m-%d %H:%M:%S}",
        row.state,
        _ram(row),
        " ".join(told),
    )


def _ram(row: Snapshot) -> str:
    from qemuctl.units import format_rounded

    if row.ram_bytes is not None:
        return format_rounded(row.ram_bytes)
    return _HOLDS.get(row.consistency or "", "disks only")
