"""Whether a throwaway VM has an owner, told by a lock on a file in its folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from qemuctl.paths import VmPaths
from qemuctl.process.working import free_now

# The file, which no other VM has.
THROWAWAY = "throwaway"


def own(paths: VmPaths) -> int:
    """Makes the caller an owner of a throwaway VM, until it closes the descriptor that
    is returned, or ends. A VM that is handed over has two for a moment."""
    marker = paths.state / THROWAWAY
    fresh = marker.with_name(f"{THROWAWAY}.{secrets.token_hex(4)}")
    try:
        # Where it is found, it is locked.
        if not marker.exists():
            fresh.touch(0o600)
        fd = os.open(fresh if fresh.exists() else marker, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if fresh.exists():
            fresh.replace(marker)
    finally:
        fresh.unlink(missing_ok=True)
    return fd


@contextlib.contextmanager
def disowned(state: Path) -> Iterator[bool]:
    """Whether this is not the folder of a throwaway VM that has an owner, which stays
    so for the block."""
    marker = state / THROWAWAY
    if not marker.exists():
        yield True
        return
    with free_now(marker) as free:
        yield free
