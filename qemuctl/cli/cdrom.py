"""`cdrom insert`, `cdrom eject`: the medium in a VM's drive."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli.declare import Argument, Option, group
from qemuctl.cli.output import tell
from qemuctl.cli.parameters import Json, Name
from qemuctl.cli.running import run_async
from qemuctl.cli.scope import Both, Config, Live, scope, words_of
from qemuctl.errors import StateError
from qemuctl.structs import Struct

if TYPE_CHECKING:
    from qemuctl.registry.scope import Scope

cdrom = group("cdrom", "The medium in a VM's CD-ROM drive, now and at its next start.")

Force = Annotated[
    bool, Option("--force", help="also while the guest is using the old one")
]


@cdrom.command(example="qemuctl cdrom insert web drivers.iso")
def insert(
    name: Name,
    iso: Annotated[Path, Argument(metavar="ISO", help="a CD image")],
    force: Force = False,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Put a CD image into the drive, in the place of what is in it."""
    from qemuctl.image.iso import check_iso

    check_iso(iso)
    done = _change(name, iso, scope(live, config, both), force=force)
    tell(asdict(done), f"inserted {iso}{words_of(done)}", as_json=json)


@cdrom.command(example="qemuctl cdrom eject web")
def eject(
    name: Name,
    force: Force = False,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Take the medium out of the drive; the drive stays."""
    from qemuctl.registry.vms import load

    if load(name).cdrom is None:
        raise StateError(f"eject the medium of {name}", "", "it has no CD-ROM drive")
    done = _change(name, None, scope(live, config, both), force=force)
    words = f"the drive of {name} is empty{words_of(done)}"
    tell(asdict(done), words, as_json=json)


class _Changed(Struct):
    """What is in the drive by now or from the next start on, and which of the two."""

    name: str
    medium: str | None
    live: bool
    configured: bool


def _change(
    name: str, iso: Path | None, wanted: Scope | None, *, force: bool
) -> _Changed:
    """Changes the medium, now before at the next start."""
    from qemuctl.registry.scope import scope_of
    from qemuctl.registry.vms import set_cdrom

    where = scope_of(name, wanted)
    if where.live:
        run_async(_live(name, iso, force=force))
    if where.config:
        set_cdrom(name, str(iso.absolute()) if iso is not None else "")
    return _Changed(
        name=name,
        medium=str(iso) if iso is not None else None,
        live=where.live,
        configured=where.config,
    )


async def _live(name: str, iso: Path | None, *, force: bool) -> None:
    from qemuctl.registry.states import Action, require
    from qemuctl.vm.attach import attach

    async with await attach(name, Action.MEDIUM) as vm:
        require(Action.MEDIUM, await vm.state(), name)
        if iso is None:
            await vm.cdrom.eject(force=force)
        else:
            await vm.cdrom.insert(iso, force=force)
