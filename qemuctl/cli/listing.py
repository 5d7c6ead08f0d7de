"""What `ls` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from qemuctl.cli.output import print_json, print_table, speak_json
from qemuctl.units import format_age, format_size

if TYPE_CHECKING:
    from qemuctl.vm.listing import Entry


def print_listing(
    *,
    include_off: bool = False,
    names_only: bool = False,
    as_json: bool = False,
    names: Sequence[str] = (),
) -> None:
    """Prints every VM that is on, or with ``include_off`` every one, or those of
    ``names``. Raises NotFound."""
    from qemuctl.vm.listing import listing

    speak_json(as_json)
    entries = listing(include_off=include_off or bool(names))
    if names:
        entries = [entry for entry in entries if entry.name in names]
        _check_known(names, {entry.name for entry in entries})
    if as_json:
        print_json([e.name if names_only else asdict(e) for e in entries])
    elif names_only:
        for entry in entries:
            print(entry.name)
    else:
        head = ("NAME", "STATE", "CPUS", "MEMORY", "IMAGE", "PID", "UP", "PORTS")
        last = ("ENDED",) if include_off else ()
        print_table((*head, *last), (_row(e, ended=include_off) for e in entries))


def _check_known(names: Sequence[str], found: set[str]) -> None:
    from qemuctl.registry.vms import find

    for name in names:
        if name not in found:
            find(name)


def _row(entry: Entry, *, ended: bool) -> list[object]:
    row: list[object] = [
        entry.name,
        f"{entry.state} ({entry.problem})" if entry.problem else entry.state,
        entry.cpus,
        format_size(entry.memory) if entry.memory else None,
        entry.image,
        entry.pid,
        format_age(entry.uptime) if entry.uptime is not None else None,
        " ".join(entry.forwards),
    ]
    return [*row, entry.ended] if ended else row
