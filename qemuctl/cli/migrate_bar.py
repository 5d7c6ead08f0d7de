"""How a migration shows itself: a bar on a terminal, or lines of JSON."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from qemuctl.cli.output import note
from qemuctl.units import format_rounded

if TYPE_CHECKING:
    from qemuctl.migration.control import Status
    from qemuctl.migration.report import Progress, Report


@contextlib.contextmanager
def lines() -> Iterator[Report]:
    """A JSON document a line, for programs."""
    from qemuctl.cli.streaming import print_line

    def show(progress: Progress) -> None:
        facts = {**asdict(progress), "phase": str(progress.phase)}
        print_line({key: value for key, value in facts.items() if value is not None})

    yield show


@contextlib.contextmanager
def bar(name: str) -> Iterator[Report]:
    """On a terminal; in a pipe nothing but notes."""
    if not sys.stderr.isatty():
        yield _say
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    from qemuctl.migration.phases import STEPS

    words = TextColumn("{task.description}", markup=False)
    rest = TextColumn("{task.fields[rest]}", markup=False)
    console = Console(stderr=True)
    columns = (words, BarColumn(bar_width=16), TaskProgressColumn(), rest)
    with Bar(*columns, console=console, transient=True) as shown:
        task = shown.add_task(f"{name}: asking both sides", total=None, rest="")

        def show(progress: Progress) -> None:
            _say(progress)
            what = STEPS[progress.phase].called
            done, total = _done(progress)
            shown.update(
                task, description=f"{name}: {what}", completed=done, total=total,
                rest=_numbers(progress),
            )  # fmt: skip

        yield show


def _say(progress: Progress) -> None:
    if progress.note is not None:
        note(progress.note)


def _done(progress: Progress) -> tuple[int, int | None]:
    if progress.ram_total:
        return progress.ram_total - progress.ram_remaining, progress.ram_total
    return progress.storage_done, progress.storage_total or None


def _numbers(progress: Progress) -> str:
    parts = []
    if progress.ram_total:
        parts.append(f"{format_rounded(progress.ram_remaining)} left")
        parts.append(f"{format_rounded(progress.rate)}/s")
        parts.append(f"{format_rounded(progress.dirty_rate)}/s changed")
        parts.append(f"round {progress.iterations}")
    if progress.expected_downtime is not None:
        parts.append(f"down {progress.expected_downtime * 1000:.0f} ms")
    if progress.throttle:
        parts.append(f"held back {progress.throttle} %")
    return ", ".join(parts)


def fields(status: Status) -> dict[str, object]:
    """The lines of `migrate-status`."""
    from qemuctl.migration.phases import STEPS

    progress = status.progress
    step = STEPS[progress.phase]
    return {
        "to": status.destination,
        "name there": status.name,
        "phase": f"{status.phase}: {step.does}",
        "if it fails": step.undone_by,
        "state": status.state,
        "disks": f"{format_rounded(progress.storage_done)} of "
        f"{format_rounded(progress.storage_total)}" if progress.storage_total else None,
        "memory": f"{format_rounded(progress.ram_total - progress.ram_remaining)} of "
        f"{format_rounded(progress.ram_total)}" if progress.ram_total else None,
        "rate": f"{format_rounded(progress.rate)}/s" if progress.rate else None,
        "changes": f"{format_rounded(progress.dirty_rate)}/s"
        if progress.ram_total else None,
        "rounds": progress.iterations or None,
        "would stand still": f"{progress.expected_downtime * 1000:.0f} ms"
        if progress.expected_downtime is not None else None,
        "held back": f"{progress.throttle} %" if progress.throttle else None,
    }  # fmt: skip
