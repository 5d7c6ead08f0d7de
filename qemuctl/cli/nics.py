"""`nic`: the network cards of a VM. `nic ls` is here, changes are in `nic_changes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from qemuctl.cli import nic_changes
from qemuctl.cli.declare import group
from qemuctl.cli.output import print_json, print_table
from qemuctl.cli.parameters import Json, Name
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.hotplug.nics.results import NicForward, NicStatus

nic = group("nic", "The network cards of a VM: list, add, remove, cables, forwards.")
forward = nic.group(
    "forward",
    "Ports of this host that lead into the guest.",
    example="qemuctl nic forward add web 8080:80",
)


@nic.command("ls", example="qemuctl nic ls web --json")
def list_nics(name: Name, json: Json = False) -> None:
    """List a VM's cards: what they are plugged into, addresses, cable, forwards.

    NOW tells of a VM that is on whether it has a card by now, and CONFIG whether
    its next start has it. GUEST is what the guest's agent calls the card.
    """
    rows = run_async(_rows(name))
    if json:
        print_json([asdict(row) for row in rows])
        return
    head = ("ID", "NOW", "CONFIG", "TYPE", "MODEL", "MAC", "LINK", "FORWARDS", "GUEST")
    print_table(head, map(_row, rows))


async def _rows(name: str) -> list[NicStatus]:
    from qemuctl.errors import QmpError, StateError, WaitTimeout
    from qemuctl.hotplug.nics.listing import written
    from qemuctl.process import runs
    from qemuctl.registry.vms import find
    from qemuctl.vm.attach import attach

    paths = find(name)
    if not runs(paths.lock):
        return written(name)
    try:
        async with await attach(name) as vm:
            return await vm.nics.list()
    except (QmpError, StateError, WaitTimeout):
        return written(name, live=None)


def _row(row: NicStatus) -> tuple[str | None, ...]:
    link: str = row.link
    if row.live and row.configured_link not in (None, row.link):
        link += f" ({row.configured_link} at its next start)"
    forwards = [_forward_text(row, each) for each in row.forwards]
    inside = row.guest
    return (
        row.id,
        None if row.live is None else _now(row),
        "yes" if row.configured else "no",
        row.type,
        row.model,
        row.mac,
        link,
        ", ".join(forwards),
        " ".join([inside.name, *inside.addresses]) if inside else None,
    )


def _now(row: NicStatus) -> str:
    return "leaving" if row.leaving else "yes" if row.live else "no"


def _forward_text(row: NicStatus, one: NicForward) -> str:
    if not row.live or one.live == one.configured:
        return one.text
    if one.live:
        return f"{one.text} (until it stops)" if row.configured else one.text
    return f"{one.text} (from its next start)"


_Commands = dict[str, tuple[Callable[..., None], str]]
_COMMANDS: _Commands = {
    "add": (nic_changes.add, "add web user,forward=:80,model=e1000"),
    "rm": (nic_changes.remove, "rm web nic1"),
    "link": (nic_changes.link, "link web nic0 down"),
}
_FORWARDS: _Commands = {
    "add": (nic_changes.add_forward, "forward add web 8080:80"),
    "rm": (nic_changes.remove_forward, "forward rm web 8080:80"),
}
for _app, _commands in ((nic, _COMMANDS), (forward, _FORWARDS)):
    for _name, (_function, _example) in _commands.items():
        _app.command(_name, example=f"qemuctl nic {_example}")(_function)
