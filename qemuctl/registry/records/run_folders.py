"""Removing run folders that no VM uses."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from qemuctl.paths import VmPaths, run_home
from qemuctl.process import take


def clear_run(paths: VmPaths) -> None:
    """Removes a run folder, unless its VM has been started meanwhile."""
    lock = None
    if paths.state.exists():
        with contextlib.suppress(OSError):
            lock = take(paths.lock)
        if lock is None:
            return
    try:
        shutil.rmtree(paths.run, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def clear_run_homes() -> list[Path]:
    """Removes the empty run folders of all homes: one that is in use is not empty, and
    one that is needed again is made again."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(run_home().parent):
            with contextlib.suppress(OSError):  # most often: it is not empty
                os.rmdir(entry.path)  # noqa: PTH106 (of a DirEntry)
                found.append(Path(entry.path))
    return found
