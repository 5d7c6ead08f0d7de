"""A machine's state on its way through a pipe: smaller in the file, whole for QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, BinaryIO

from qemuctl.errors import QemuctlError
from qemuctl.thread import Tick, in_thread

# Seconds after which one who waits at a pipe looks whether anybody still wants it.
_LOOK = 0.2
_PART = 1024 * 1024
# Seconds for the end of a pipe to tell why it has stopped reading.
_LAST_WORDS = 1.0
# zstd's own default.
_LEVEL = 3


async def pack(
    file: BinaryIO, write: Callable[[BinaryIO], Coroutine[Any, Any, None]]
) -> None:
    """Has ``write`` fill a pipe; what comes out of it is in ``file`` afterwards,
    compressed. Raises OSError where that cannot be written."""
    out, into = os.pipe()
    with os.fdopen(out, "rb", buffering=0) as reader:
        packing = asyncio.ensure_future(in_thread(partial(_pack, reader, file)))
        try:
            with os.fdopen(into, "wb", buffering=0) as writer:
                await _unless_failed(write(writer), packing)
            await packing
        except QemuctlError:
            # Who writes may only have heard that nobody reads any more.
            if packing in (await asyncio.wait({packing}, timeout=_LAST_WORDS))[0]:
                packing.result()
            raise
        finally:
            packing.cancel()
            await asyncio.gather(packing, return_exceptions=True)


async def _unless_failed(
    work: Coroutine[Any, Any, None], packing: asyncio.Future[None]
) -> None:
    writing = asyncio.ensure_future(work)
    try:
        await asyncio.wait({writing, packing}, return_when=asyncio.FIRST_COMPLETED)
        if packing.done() and not writing.done():
            packing.result()
        await writing
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


@contextlib.asynccontextmanager
async def unpacked(file: BinaryIO) -> AsyncIterator[BinaryIO]:
    """For the block, a pipe that ``file`` comes out of, as it was before it was
    compressed; it ends early where the file makes no sense."""
    out, into = os.pipe()
    with os.fdopen(out, "rb", buffering=0) as reader:
        unpacking = asyncio.ensure_future(in_thread(partial(_unpack, file, into)))
        try:
            yield reader
        finally:
            unpacking.cancel()
            await asyncio.gather(unpacking, return_exceptions=True)


def _pack(reader: BinaryIO, file: BinaryIO, tick: Tick) -> None:
    import zstandard  # most VMs are saved as they are

    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    try:
        while part := _next(reader, tick):
            _write(file, packer.compress(part))
        _write(file, packer.flush())
    finally:
        reader.close()  # QEMU must not wait for who has gone


def _write(file: BinaryIO, part: bytes) -> None:
    left = memoryview(part)
    while left:  # a disk that is nearly full takes a part of it first
        left = left[file.write(left) :]


def _next(reader: BinaryIO, tick: Tick) -> bytes:
    """What comes next out of a pipe; a QEMU that hangs can be called off."""
    while not select.select([reader], [], [], _LOOK)[0]:
        tick()
    tick()
    return os.read(reader.fileno(), _PART)


def _unpack(file: BinaryIO, into: int, tick: Tick) -> None:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as parts:
            os.set_blocking(into, False)
            while part := parts.read(_PART):
                _push(into, part, tick)
    except (zstandard.ZstdError, BrokenPipeError):
        pass  # the sum tells, or QEMU does
    finally:
        os.close(into)


def _push(into: int, part: bytes, tick: Tick) -> None:
    left = memoryview(part)
    while left:
        tick()
        if select.select([], [into], [], _LOOK)[1]:
            left = left[os.write(into, left) :]
