"""`cdrom insert`, `cdrom eject`: the medium in a VM's drive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qemuctl.cli.app import Name, group
from qemuctl.cli.output import note
from qemuctl.cli.running import run_async
from qemuctl.errors import StateError

cdrom = group("cdrom", "The medium in a VM's CD-ROM drive, now and at its next start.")

Force = Annotated[
    bool, typer.Option("--force", help="also while the guest is using the old one")
]


@cdrom.command(epilog="Example:  qemuctl cdrom insert web drivers.iso")
def insert(
    name: Name,
    iso: Annotated[Path, typer.Argument(metavar="ISO", help="a CD image")],
    force: Force = False,
) -> None:
    """Put a CD image into the drive, in the place of what is in it."""
    from qemuctl.image.iso import check_iso

    check_iso(iso)
    now = run_async(_live(name, iso, force))
    _configure(name, str(iso.absolute()))
    note(f"inserted {iso}" + ("" if now else f"; {name} is off, its next start has it"))


@cdrom.command(epilog="Example:  qemuctl cdrom eject web")
def eject(name: Name, force: Force = False) -> None:
    """Take the medium out of the drive; the drive stays."""
    from qemuctl.vm.definitions import load

    if load(name).cdrom is None:
        raise StateError(f"eject the medium of {name}", "", "it has no CD-ROM drive")
    now = run_async(_live(name, None, force))
    _configure(name, "")
    note(f"the drive of {name} is empty" + ("" if now else ", from its next start"))


async def _live(name: str, iso: Path | None, force: bool) -> bool:
    """Changes the medium of a VM that is on; tells whether it is."""
    from qemuctl.process import held
    from qemuctl.vm.attach import attach
    from qemuctl.vm.definitions import find
    from qemuctl.vm.states import Action, require

    if not held(find(name).lock):
        return False
    async with await attach(name, Action.MEDIUM) as vm:
        require(Action.MEDIUM, await vm.state(), name)
        if iso is None:
            await vm.cdrom.eject(force=force)
        else:
            await vm.cdrom.insert(iso, force=force)
    return True


def _configure(name: str, medium: str) -> None:
    from qemuctl.vm.definitions import set_cdrom

    set_cdrom(name, medium)
