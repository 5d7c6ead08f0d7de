"""Spawn, adopt, identity, exit status: the only room that spawns QEMU.

Who is who::

    owner (qemuctl) ──pipe──► shepherd (sh) ──parent of──► QEMU
           └─────────pipe──► undertaker (sh), throwaway VMs only

The shepherd writes QEMU's exit status to a file and kills QEMU when the
owner goes away without having said ``detach``. The undertaker removes the
files of a throwaway VM once everybody else is gone. Both are a few lines of
shell, so that they cost a megabyte and outlive every Python process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.process import holders as holders
    from qemuctl.process.child import Child, Undertaker, bury, spawn
    from qemuctl.process.exited import Exited, read_exit
    from qemuctl.process.gone import wait_gone
    from qemuctl.process.identity import Identity
    from qemuctl.process.lock import at_work, held, runs, take

__getattr__ = exports(
    __name__,
    {
        "Child": "qemuctl.process.child",
        "Exited": "qemuctl.process.exited",
        "Identity": "qemuctl.process.identity",
        "Undertaker": "qemuctl.process.child",
        "at_work": "qemuctl.process.lock",
        "bury": "qemuctl.process.child",
        "held": "qemuctl.process.lock",
        "holders": "qemuctl.process.holders",
        "read_exit": "qemuctl.process.exited",
        "runs": "qemuctl.process.lock",
        "spawn": "qemuctl.process.child",
        "take": "qemuctl.process.lock",
        "wait_gone": "qemuctl.process.gone",
    },
)

__all__ = [
    "Child",
    "Exited",
    "Identity",
    "Undertaker",
    "at_work",
    "bury",
    "held",
    "read_exit",
    "runs",
    "spawn",
    "take",
    "wait_gone",
]
