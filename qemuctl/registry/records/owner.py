"""Whether a throwaway VM has an owner, told by a lock on a file in its folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from qemuctl.paths import VmPaths
from qemuctl.process.working import free_now
from qemuctl.waiting import lock_for_a_moment

# The file, which no other VM has.
THROWAWAY = "throwaway"


def own(paths: VmPaths) -> int:
    """Makes the caller an owner of a throwaway VM, until it closes the descriptor that
    is returned, or ends. A VM that is handed over has two for a moment.

    The file says for people who it is, by its pid.
    """
    marker = paths.state / THROWAWAY
    fd = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_for_a_moment(fd, str(marker), shared=True)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(fd)
        raise
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
        # Whoever makes the file has not yet locked it as long as it is empty.
        yield free and marker.stat().st_size > 0
