"""A download on disk: as much of it as has come, who works on it, its hashes.

``HASH.part`` holds the bytes, ``HASH.json`` what the server said of the file,
``HASH.lock`` is locked by whoever downloads; HASH is of the URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qemuctl.errors import ImageError
from qemuctl.image.claim import claimed
from qemuctl.process.working import free_now
from qemuctl.structs import Struct
from qemuctl.units import MIB

# Written and hashed at once: large enough that a thread's turn costs little,
# small enough to be in the processor's cache still.
_BLOCK = MIB // 2
# A slow transfer reaches the file at least this often, in seconds.
_FLUSH = 0.2
_SUFFIXES = (".part", ".json", ".new", ".lock")


class Origin(Struct, kw_only=False):
    """What the server said of the file: validators as RFC 9110, 8.8 has them.

    ``etag`` and ``modified`` are None unless they are strong.
    """

    url: str
    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range takes (RFC 9110, 13.1.5): a date only without an ETag."""
        return self.etag or self.modified


class Part:
    """The part of one URL in ``folder``; only under its lock (`locked`)."""

    def __init__(self, folder: Path, url: str, *algorithms: str) -> None:
        name = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:32]
        self.folder = folder
        self.path = folder / f"{name}.part"
        self._record = folder / f"{name}.json"
        self._lock = folder / f"{name}.lock"
        self._algorithms = dict.fromkeys(("sha256", *algorithms))
        self._hashes: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="download")
        self._working: Future[None] | None = None
        self._buffer, self._other = bytearray(_BLOCK), bytearray(_BLOCK)
        self._filled = 0
        self._flushed = 0.0
        self._fd = -1
        self._failed = False
        self.size = 0
        self.origin = Origin(url="")

    @contextlib.asynccontextmanager
    async def locked(self, waiting: Callable[[], None]) -> AsyncIterator[None]:
        """The lock, which tasks and processes share; ``waiting`` is called while
        another has it. What is of no use to anybody is removed at the end."""
        async with contextlib.AsyncExitStack() as stack:
            with _disk_errors(self.folder):
                await stack.enter_async_context(claimed(self._lock, waiting))
            try:
                yield
            finally:
                self._close()
                if self.peek()[0] == 0 or self._load().validator is None:
                    _remove(self._lock)

    def peek(self) -> tuple[int, int | None]:
        """How far somebody else is: bytes, and of how many."""
        try:
            return self.path.stat().st_size, self._load().total
        except FileNotFoundError:
            return 0, None

    async def reopen(self) -> None:
        """Takes up what an earlier download left, if that can be resumed.

        Raises ImageError when the disk refuses.
        """
        with _disk_errors(self.folder):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o600)
            self.origin = self._load()
            there, total = os.fstat(self._fd).st_size, self.origin.total
            if self.origin.validator is None or (total is not None and there > total):
                there = 0
            elif there == total:
                # The last byte is asked for again, for only the server knows
                # whether the whole file is still the one it has.
                there = max(total - 1, 0)
            await self._restart(there)

    async def begin(self, origin: Origin) -> None:
        """Starts with nothing, for the file that ``origin`` describes."""
        with _disk_errors(self.folder):
            await self._settle()
            self._write_record(origin)
            await self._restart(0)

    def expect(self, total: int | None) -> None:
        """Learns how long the whole file is, from an answer that tells more."""
        self.origin = replace(self.origin, total=total)

    async def drop(self) -> None:
        """Forgets all that has come."""
        await self.begin(Origin(url=self.origin.url))

    async def _restart(self, size: int) -> None:
        """Cuts the file to ``size`` and hashes that much of it."""
        self._filled, self.size = 0, size
        self._flushed = time.monotonic()
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hashes = {name: hashlib.new(name) for name in self._algorithms}
        left = size
        while left > 0:
            # Block by block, so that it can be cancelled.
            step = min(left, 4 * _BLOCK)
            self._working = self._thread.submit(self._hash_file, step)
            await self._settle()
            left -= step

    def need(self, total: int) -> None:
        """Raises ImageError unless the disk has room for ``total`` bytes in all."""
        with _disk_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if total - self.size > free:
            raise ImageError(
                f"no room for {-(-(total - self.size) // MIB)} MiB in {self.folder}: "
                f"{free // MIB} MiB are free",
                hint="make room there",
            )

    async def add(self, chunk: bytes) -> None:
        """Appends bytes; they are written and hashed while the next ones come.

        Raises ImageError when the disk refuses: for lack of space, with the file
        already removed.
        """
        if self._filled + len(chunk) > len(self._buffer):
            await self._hand_on()
            if len(chunk) > len(self._buffer):
                self._buffer = bytearray(len(chunk))
        self._buffer[self._filled : self._filled + len(chunk)] = chunk
        self._filled += len(chunk)
        self.size += len(chunk)
        if time.monotonic() - self._flushed >= _FLUSH:
            await self._hand_on()

    async def flush(self) -> None:
        """Comes back when all is in the file and in the hashes."""
        await self._hand_on()
        with self._full_disk():
            await self._settle()

    async def _hand_on(self) -> None:
        with self._full_disk():
            await self._settle()
        # Two buffers take turns: fresh memory for each block would cost as much
        # as its hash.
        self._buffer, self._other = self._other, self._buffer
        full, self._filled = self._filled, 0
        self._flushed = time.monotonic()
        self._working = self._thread.submit(self._write, self._other, full)

    async def _settle(self) -> None:
        if self._working is not None:
            working, self._working = self._working, None
            await asyncio.wrap_future(working)

    def _write(self, buffer: bytearray, size: int) -> None:
        if self._failed:
            return  # what came before is not there: nothing can follow it
        with memoryview(buffer)[:size] as data:
            self._failed = True
            done = 0
            while done < size:
                done += os.write(self._fd, data[done:])
            self._failed = False
            for digest in self._hashes.values():
                digest.update(data)

    def _hash_file(self, size: int) -> None:
        data = os.read(self._fd, size)
        if len(data) != size:
            raise OSError(errno.EIO, "the file became shorter")
        for digest in self._hashes.values():
            digest.update(data)

    def digest(self, algorithm: str) -> str:
        """The hexadecimal digest of all that has come (after `flush`)."""
        return str(self._hashes[algorithm].hexdigest())

    async def finish(self) -> None:
        """Notes that the file is whole."""
        with _disk_errors(self.folder):
            self._write_record(replace(self.origin, total=self.size))

    def remove(self) -> None:
        """Removes what has come; its space is free at once."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._filled:  # cut short: all that has come is of use to a resume
            self._thread.submit(self._write, self._buffer, self._filled)
        self._thread.shutdown(wait=True)  # at most two blocks are on their way
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_record(self, origin: Origin) -> None:
        self.origin = origin
        fresh = self._record.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(origin)))
        fresh.replace(self._record)

    def _load(self) -> Origin:
        try:
            found = Origin(**json.loads(self._record.read_text()))
        except (OSError, ValueError, TypeError):
            return Origin(url="")  # then nothing can be resumed
        texts = (found.etag or "", found.modified or "", found.url)
        sound = all(isinstance(text, str) for text in texts)
        return found if sound and isinstance(found.total or 0, int) else Origin(url="")

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        """A full disk gets back what the download took of it."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.remove()
                raise ImageError(
                    f"no space left in {self.folder}", hint="make room there"
                ) from error
            raise _refusal(self.folder, error) from error


def _remove(lock: Path) -> None:
    """Removes all that belongs to a lock; the lock last, and by its holder only."""
    for suffix in _SUFFIXES:
        lock.with_suffix(suffix).unlink(missing_ok=True)


def broken(folder: Path) -> dict[Path, list[Path]]:
    """The files of each download that nobody is at, by its lock."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(folder.glob("*.*")):
        lock = path.with_suffix(".lock")
        if path.suffix in _SUFFIXES and lock not in found and not _is_held(lock):
            found[lock] = sorted({path, *folder.glob(f"{lock.stem}.*")})
    return found


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False  # to ask by taking it would make it
    with free_now(lock) as free:
        return not free


def discard(lock: Path) -> bool:
    """Removes what a broken download left; False when somebody has taken it up."""
    with free_now(lock) as free:
        if free:
            _remove(lock)
        return free


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(folder, error) from error


def _refusal(folder: Path, error: OSError) -> ImageError:
    return ImageError(f"cannot write in {folder}: {error.strerror or error}")
