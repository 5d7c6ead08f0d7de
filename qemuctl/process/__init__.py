"""Spawn, adopt, identity, exit status: the only room that spawns QEMU.

Who is who::

    owner (qemuctl) ──pipe──► shepherd (sh) ──parent of──► QEMU
           └─────────pipe──► undertaker (sh), throwaway VMs only

The shepherd writes QEMU's exit status to a file and kills QEMU when the
owner goes away without having said ``detach``. The undertaker removes the
files of a throwaway VM once everybody else is gone. Both are a few lines of
shell, so that they cost a megabyte and outlive every Python process.
"""

from qemuctl.process.identity import Identity
from qemuctl.process.lock import held, take
from qemuctl.process.spawn import (
    Child,
    Exited,
    Undertaker,
    bury,
    read_exit,
    spawn,
    wait_gone,
)

__all__ = [
    "Child",
    "Exited",
    "Identity",
    "Undertaker",
    "bury",
    "held",
    "read_exit",
    "spawn",
    "take",
    "wait_gone",
]
