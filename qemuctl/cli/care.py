"""`doctor` and `gc`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from qemuctl.cli.declare import Option, command
from qemuctl.cli.output import note, print_json, print_text
from qemuctl.cli.parameters import Json


@command("doctor", example="qemuctl doctor")
def doctor(json: Json = False) -> None:
    """Check what this host can do, and say what to do about the rest."""
    from qemuctl.host.doctor import checks

    found = list(checks())
    if json:
        print_json([asdict(check) for check in found])
    else:
        for check in found:
            print_text(f"{check.status:<4}  {check.name}: {check.detail}")
            if check.advice:
                print_text(f"      → {check.advice}")
    if any(check.status == "fail" for check in found):
        raise SystemExit(1)


@command("gc", example="qemuctl gc --dry-run")
def gc(
    dry_run: Annotated[bool, Option(help="only say what would go")] = False,
    json: Json = False,
) -> None:
    """Remove what crashes left behind; VMs that were created are never touched.

    Files of disks that were removed from VMs are named, and stay.
    """
    from qemuctl.image import store
    from qemuctl.migration import arrivals
    from qemuctl.registry.leftover_disks import left_of_all, way_back
    from qemuctl.registry.records.run_folders import clear_run_homes
    from qemuctl.registry.removal import clear, leftovers
    from qemuctl.templates import catalog

    found = [*leftovers(), *store.leftovers(), *catalog.leftovers()]
    found += arrivals.leftovers()
    for path in [] if dry_run else found:
        kept = clear(path)
        if kept is not None:
            note(f"kept the disks of a VM that was being removed: {kept}")
    if not dry_run:
        clear_run_homes()
    if json:
        print_json([str(path) for path in found])
        return
    for path in found:
        print_text(path)
    if not found:
        note("nothing to remove")
    for name, files in left_of_all().items():
        for file in files:
            note(f"not removed: {way_back(name, file)}")
