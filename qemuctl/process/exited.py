"""How a QEMU ended, as its shepherd wrote it down."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from qemuctl.structs import Struct

_LIKELY = {-signal.SIGKILL, -signal.SIGSEGV}


class Exited(Struct, kw_only=False):
    """How QEMU ended: its status, negative for a signal; None if nobody saw.

    ``at`` is the time of it, in seconds since the epoch.
    """

    status: int | None
    at: float | None


def read_exit(path: Path) -> Exited:
    """What the shepherd wrote about QEMU's end.

    A shell adds 128 to the number of a signal; QEMU's own status stays below, except
    with the isa-debug-exit device: what a guest writes to that comes out as an odd
    number of any size. SIGKILL and SIGSEGV are odd too, and believed in all the same.
    """
    with contextlib.suppress(OSError, ValueError):
        text, *chosen = path.read_text().split()
        status = int(text)
        own = chosen and status % 2 and 128 - status not in _LIKELY
        if 128 < status <= 128 + signal.SIGRTMAX and not own:
            status = 128 - status
        return Exited(status, path.stat().st_mtime)
    return Exited(None, None)
