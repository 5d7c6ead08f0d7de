"""What is worth saying about a VM that has just started."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qemuctl.cli.output import note
from qemuctl.paths import cache_home

if TYPE_CHECKING:
    from qemuctl.vm.record import Record


def say_accelerator(record: Record, requested: str) -> None:
    """Says once which accelerator ``auto`` chose and why, and again only when
    that has changed; `info` and `doctor` always tell."""
    if requested != "auto":
        return
    said = cache_home() / "accelerator-said"
    with contextlib.suppress(OSError):
        if said.exists() and said.read_text() == record.accel_reason:
            return
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(record.accel_reason)
    note(f"note: {record.accel_reason}")
