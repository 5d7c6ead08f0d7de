"""What is in a file, as a digest that is computed once for as long as it is the same.

Files of some gigabytes take seconds; whether a file is still the one that was
read is told by the kernel: its size, its inode, and when it was changed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from qemuctl import durable
from qemuctl.errors import HostError, ImageError
from qemuctl.paths import cache_home
from qemuctl.structs import Struct
from qemuctl.thread import Tick
from qemuctl.units import MIB

_SETTLED = 1_000_000_000  # ns


class Stamp(Struct, kw_only=False):
    """What a file's content cannot change without; not kept by a copy, nor can a
    program set the time (ctime) as it can that of the content (mtime)."""

    size: int
    inode: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError."""
        status = path.stat()
        return cls(status.st_size, status.st_ino, status.st_ctime_ns)


def digest(path: Path, tick: Tick = lambda: None) -> str:
    """The SHA-256 of what a file holds, in hexadecimal digits.

    The answer is kept in the cache. ``tick`` is called now and then and may end
    the work by raising. Raises ImageError, also for a device, whose content changes
    without a trace.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"not a file that could be told from another: {path}")
        stamp = Stamp.of(path)
        known = _known(path)
        if known is not None and known[0] == stamp:
            return known[1]
        found = compute(path, tick)
        # A write within the clock's next tick would not show.
        settled = time.time_ns() - stamp.ctime_ns > _SETTLED
        if settled and Stamp.of(path) == stamp:
            _remember(path, stamp, found)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    return found


def compute(path: Path, tick: Tick = lambda: None) -> str:
    """As `digest`, from the content alone. Raises OSError.

    Holes are not read: a guest's memory is mostly holes. They count as the zeros
    that they are, so that it does not matter where a copy has its own.
    """
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        sha.update(b"%d" % size)
        at = 0
        while (start := _data(file, at)) is not None:
            tick()
            at = start - start % MIB
            file.seek(at)
            part = file.read(MIB)
            if part.count(0) != len(part):
                sha.update(b"\0%d\0" % at)
                sha.update(part)
            at += MIB
    return sha.hexdigest()


def _data(file: BinaryIO, at: int) -> int | None:
    """Where there is data from ``at`` on; None when there is none."""
    try:
        return os.lseek(file.fileno(), at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _kept(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return cache_home() / "digests" / f"{name[:32]}.json"


def _known(path: Path) -> tuple[Stamp, str] | None:
    try:
        value = json.loads(_kept(path).read_text())
        return Stamp(**value["stamp"]), str(value["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, stamp: Stamp, found: str) -> None:
    """Without it the work is done again, and no more."""
    kept = _kept(path)
    with contextlib.suppress(OSError, HostError):
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        value = {"stamp": asdict(stamp), "digest": found}
        durable.write_json(kept, value, durable=False)
