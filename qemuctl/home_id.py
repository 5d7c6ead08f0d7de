"""What tells a home from all others: a random number in the file ``id`` of its
state folder, made once and never changed."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from pathlib import Path

from qemuctl import durable
from qemuctl.errors import HostError
from qemuctl.waiting import lock_for_a_moment

_ID = re.compile(r"[0-9a-f]{32}")


def made_id(state: Path) -> str:
    """The id of the home whose state folder this is, which exists; on the disk when
    it returns.

    Raises DamagedFile where there is one that makes no sense, OSError and HostError
    where it cannot be made.
    """
    path = state / "id"
    if (known := _read(path)) is not None:
        return known
    # The folder itself is the lock, for the moment that it takes to make a file.
    folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock_for_a_moment(folder, str(state))
        if (known := _read(path)) is None:
            known = os.urandom(16).hex()
            durable.write(path, f"{known}\n")
        return known
    finally:
        os.close(folder)


def run_name(state: Path) -> str | None:
    """The name of the run folder that belongs to this state folder and no other.

    It is made from the id and from which file holds it, for a copy of the folder has
    the same id: device and inode number tell two apart, also where two mount
    namespaces have them at the same path. None where there is no state folder, or
    none that an id can be written to.
    """
    with contextlib.suppress(OSError, HostError):
        id_ = made_id(state)
        status = (state / "id").stat()
        # Not hashlib, which takes milliseconds to import; the length is that of
        # a name that leaves room in the path of a socket.
        rest = zlib.crc32(f"{id_} {status.st_dev} {status.st_ino}".encode())
        return f"{id_[:2]}{rest:08x}"
    return None


def _read(path: Path) -> str | None:
    """None where there is none."""
    hint = (
        "VMs that run now, and migrations that were cut short, are not found without "
        f"it; to make another one: rm {path}"
    )
    try:
        with durable.understood(path, hint):
            (known,) = path.read_text(encoding="utf-8").split()
            if not _ID.fullmatch(known):
                raise ValueError
            return known
    except FileNotFoundError:
        return None
