"""The events of many VMs as they come, those of VMs that start later too.

QEMU itself writes its events to a file of each VM (see `eventlog`), so no
monitor is occupied and nothing is missed. The kernel tells when one of the
files, or the folder of all VMs, has changed (inotify(7)); what has changed is
then looked up, so that it does not matter which notice came, and how often.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from asyncinotify import Inotify, Mask

from qemuctl import bounded
from qemuctl.descriptors import readable
from qemuctl.paths import VmPaths, private_dir, vms_dir
from qemuctl.qmp import Event, eventlog
from qemuctl.registry.vms import find, names
from qemuctl.structs import Struct

# inotify instances and watches are scarce (fs.inotify.max_user_*): without them
# there is nothing to wait for, and we look this often, in seconds.
_LOOK_EVERY = 0.2
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOSYS)
_FOLDER = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE
_CHUNK = 256 * 1024


class Named(Struct, kw_only=False):
    """An event and the name of the VM that it came from."""

    vm: str
    event: Event

    @property
    def at(self) -> float:
        """Seconds since the epoch, by QEMU."""
        return self.event.at


async def feed(
    only: Collection[str] = (), *, since: float | None = None
) -> AsyncGenerator[Named, None]:
    """The events of some VMs, or of all, without end.

    From now on, or from ``since`` on (seconds since the epoch), what is past
    in the order of time. A VM's file begins anew with each of its starts, so
    that the past is that of its last run. Ends when all of the VMs that were
    named have been removed. Raises NotFound for a name that no VM has.
    """
    for name in only:
        find(name)
    private_dir(vms_dir())
    with _Files(only) as files:
        found = files.begin(since)
        while True:
            for named in sorted(found, key=lambda named: named.at):
                yield named
            if only and not files.logs:
                return
            await files.bell.rung()
            found = files.news()


class _Bell:
    """Tells that something has changed; says not what."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._blind = False

    def __enter__(self) -> Self:
        try:
            self._inotify = Inotify(sync_timeout=0)
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def add(self, path: Path, mask: Mask) -> None:
        """From now on rings for this path too, unless it has gone."""
        if self._inotify is None:
            return
        try:
            self._inotify.add_watch(path, mask)
        except OSError as error:
            if error.errno in _SCARCE:
                self._blind = True
            elif error.errno != errno.ENOENT:
                raise

    async def rung(self) -> None:
        """Waits for a change since the last time."""
        if self._inotify is None:
            await asyncio.sleep(_LOOK_EVERY)
            return
        try:
            async with asyncio.timeout(_LOOK_EVERY if self._blind else None):
                await readable(self._inotify.fd)
        except TimeoutError:
            return
        while self._inotify.sync_get() is not None:
            pass


class _Log:
    """The events of one VM's file, read as it grows."""

    def __init__(self, name: str, paths: VmPaths, folder: tuple[int, int]) -> None:
        self.folder = folder
        self._name = name
        self._path = paths.events
        self._file: BinaryIO | None = None
        self._rest = b""

    def open(self, bell: _Bell) -> None:
        """Opens the file when it is there: a VM has none before its first start."""
        if self._file is not None:
            return
        try:
            # Where old events were, there may be gigabytes of nothing.
            start = bounded.start(self._path)
            self._file = self._path.open("rb", buffering=0)
        except OSError:
            return
        self._file.seek(start)
        bell.add(self._path, Mask.MODIFY)

    def skip(self) -> None:
        """Leaves out what is there already."""
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> Iterator[Named]:
        """The events since the last time."""
        if self._file is None:
            return
        # The next start of the VM empties the file.
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
        # Old events give way to a hole.
        place = self._file.tell()
        self._file.seek(bounded.begin(self._file.fileno(), place))
        while chunk := self._file.read(_CHUNK):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                # Old events give way to a hole, which reads as zeros.
                event = eventlog.parse(line.lstrip(b"\0"))
                if event is not None:
                    yield Named(self._name, event)
            self._rest = self._rest.lstrip(b"\0")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Files:
    """The files of all VMs that are wanted."""

    def __init__(self, only: Collection[str]) -> None:
        self._only = only
        self._looked_at = time.time()
        self.logs: dict[str, _Log] = {}
        self.bell = _Bell()

    def __enter__(self) -> Self:
        self.bell.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        for log in self.logs.values():
            log.close()
        self.bell.__exit__(*exc)

    def begin(self, since: float | None) -> list[Named]:
        """What is past, from a time on."""
        self.bell.add(vms_dir(), _FOLDER)
        self._join()
        if since is None:
            for log in self.logs.values():
                log.skip()
            return []
        every = [named for log in self.logs.values() for named in log.read()]
        return [named for named in every if named.at >= since]

    def news(self) -> list[Named]:
        """What has come since the last time, of VMs that came since, too."""
        last, self._looked_at = self._looked_at, time.time()
        old = set(self.logs)
        found: list[Named] = []
        for log in self._part():
            found += log.read()
            log.close()
        self._join()
        for name, log in self.logs.items():
            # A VM that was renamed has a past, which was told already.
            past = name not in old
            found += [x for x in log.read() if not past or x.at >= last]
        return found

    def _part(self) -> list[_Log]:
        """Lets go of VMs that were removed or renamed; their last words are
        still to be read."""
        gone = {n for n, log in self.logs.items() if log.folder != _folder(n)}
        return [self.logs.pop(name) for name in gone]

    def _join(self) -> None:
        """Takes in VMs that are there by now, and files that are."""
        for name in names():
            if self._only and name not in self._only:
                continue
            folder, paths = _folder(name), VmPaths.of(name)
            if name not in self.logs and folder is not None:
                self.logs[name] = _Log(name, paths, folder)
                # First the watch, then the look: nothing falls between them.
                self.bell.add(paths.state, _FOLDER)
        for log in self.logs.values():
            log.open(self.bell)


def _folder(name: str) -> tuple[int, int] | None:
    """Which folder has the name of a VM now; another one is another VM."""
    try:
        status = VmPaths.of(name).state.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
