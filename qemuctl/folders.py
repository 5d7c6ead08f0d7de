"""Folders that only their owner may enter, and what is in the way of one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qemuctl.errors import HostError


def private_dir(path: Path) -> Path:
    """Makes a folder that only its owner may enter, parents included.

    Raises HostError when it exists and belongs to somebody else: below
    ``/tmp`` anyone may have made it first, or a folder on the way to it.
    """
    try:
        _refuse_planted(path)
        # mkdir's own way to make parents does not give them the mode; and `gc` may
        # remove an empty parent between the two steps.
        while not _made(path):
            private_dir(path.parent)
        status = path.lstat()
        # A link of one's own, as to a larger disk, is as good as a folder.
        if stat.S_ISLNK(status.st_mode) and status.st_uid == os.getuid():
            status = path.stat()
    except OSError as error:
        raise HostError(
            f"cannot make the folder {path}: {error.strerror}",
            hint=blocking_folder(path),
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise _not_yours(path)
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def _made(path: Path) -> bool:
    """Whether there is such a folder now; not where it has no parent to be in."""
    if not path.parent.exists():
        return False
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        return False
    return True


def _refuse_planted(path: Path) -> None:
    """Raises HostError when a stranger's folder in a shared one (sticky, as
    ``/tmp``) is on the way: its owner could exchange what is below it."""
    for folder in path.absolute().parents:
        if folder.parent.exists() and folder.parent.stat().st_mode & stat.S_ISVTX:
            try:
                owner = folder.lstat().st_uid
            except FileNotFoundError:
                continue
            if owner not in (0, os.getuid()):
                raise _not_yours(folder)


def _not_yours(path: Path) -> HostError:
    return HostError(
        f"not a folder of yours: {path}",
        hint="set QEMUCTL_HOME or XDG_RUNTIME_DIR to a folder of your own",
    )


def blocking_folder(path: Path) -> str | None:
    """Names the first folder on the way to ``path`` that bars the caller."""
    for folder in reversed(path.absolute().parents):
        if not folder.exists():
            return f"the folder does not exist: {folder}"
        if not folder.is_dir():
            return f"not a folder: {folder}"
        if not os.access(folder, os.X_OK):
            return f"the folder does not let you in: {folder}"
    return None
