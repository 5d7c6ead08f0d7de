"""Who holds a file open; for a VM whose own record of its process is lost."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from qemuctl.process.identity import Identity


def holders(path: Path) -> list[Identity]:
    """The processes of ours that have ``path`` open (proc_pid_fd(5))."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(fd.samefile(path) for fd in (process / "fd").iterdir()):
                identity = Identity.of(int(process.name))
                found += [identity] if identity else []
    return found
