"""Live migration: a running VM goes to another home, here or on another host.

::

    source ──── channel: JSON lines on stdio ────► receiver
      │   ssh's or a child's                          │
      ├── QEMU ═══ RAM, a unix socket ══════════► QEMU ┤ waits, its CPUs stopped
      └── disks ══ NBD, a unix socket ══════════► exports

`phases` is the course of it; `source` walks through it, `receiver` answers. One rule
keeps two copies from running: the receiver's guest takes no step before it is told
``go``, and the source never goes on after it has said that, unless it has heard that
the other one never will. What was said is in `registry.records.migration_journal`
before it is said, on both sides; `recovery` reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.migration.destination import Destination, parse_destination
    from qemuctl.migration.options import Options
    from qemuctl.migration.phases import Phase
    from qemuctl.migration.recovery import recover
    from qemuctl.migration.report import Moved, Progress
    from qemuctl.migration.source import migrate

__getattr__ = exports(
    __name__,
    {
        "Destination": "qemuctl.migration.destination",
        "Moved": "qemuctl.migration.report",
        "Options": "qemuctl.migration.options",
        "Phase": "qemuctl.migration.phases",
        "Progress": "qemuctl.migration.report",
        "migrate": "qemuctl.migration.source",
        "parse_destination": "qemuctl.migration.destination",
        "recover": "qemuctl.migration.recovery",
    },
)

__all__ = [
    "Destination",
    "Moved",
    "Options",
    "Phase",
    "Progress",
    "migrate",
    "parse_destination",
    "recover",
]
