"""How a QEMU ended, as its shepherd wrote it down."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exited:
    """How QEMU ended: its status, negative for a signal; None if nobody saw.

    ``at`` is the time of it, in seconds since the epoch.
    """

    status: int | None
    at: float | None


def read_exit(path: Path) -> Exited:
    """What the shepherd wrote about QEMU's end.

    A shell adds 128 to the number of a signal; QEMU's own status stays below,
    except with the isa-debug-exit device, which is a test's own doing.
    """
    with contextlib.suppress(OSError, ValueError):
        status = int(path.read_text())
        if 128 < status <= 128 + signal.SIGRTMAX:
            status = 128 - status
        return Exited(status, path.stat().st_mtime)
    return Exited(None, None)
