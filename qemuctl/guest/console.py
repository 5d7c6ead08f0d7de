"""The serial console on the user's terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

from qemuctl.descriptors import readable
from qemuctl.errors import HostError, StateError
from qemuctl.process.lock import take

ESCAPE = b"\x1d"  # Ctrl-]
# What a guest may have left of a terminal (ECMA-48, xterm's private modes): firmware
# turns wrap off, programs hide the cursor, take the mouse and set scroll regions.
_RESTORE = (
    b"\x1b[0m\x1b(B\x0f\x1b[?7h\x1b[?25h\x1b[?1l\x1b>\x1b[4l"
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b7\x1b[r\x1b8"
)
# Leaving the other screen moves the cursor, so only who is there leaves it.
_SCREEN = re.compile(rb"\x1b\[\?(?:1049|1047|47)([hl])")
_SCREEN_MOST = 8
_CHUNK = 64 * 1024
# What goes through the agent costs by the part, so parts should be large.
_PIPE_SIZE = 1024 * 1024


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[bool]:
    """Every key goes to the guest, Ctrl-C too; False when it is no terminal."""
    if not os.isatty(fd):
        yield False
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield True
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to a VM's serial socket, before or after the guest runs.

    Raises StateError when another console has it: QEMU serves one client.
    """
    lock = take(path.with_suffix(".lock"))
    if lock is None:
        raise StateError(
            "open the console", "busy", "another terminal has this VM's console open"
        )
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        os.close(lock)
        raise HostError(f"no serial console at {path}: {error.strerror}") from error
    # The lock lives as long as the connection.
    asyncio.create_task(_release_after(writer, lock))  # noqa: RUF006
    return reader, writer


async def _release_after(writer: asyncio.StreamWriter, lock: int) -> None:
    try:
        await writer.wait_closed()
    except OSError:
        pass
    finally:
        os.close(lock)


async def interact(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    escape: bytes | None = ESCAPE,
) -> bool:
    """Joins standard input and output to the console until either side ends.

    True when the user left by ``escape``, False when the VM ended. Input that is
    no terminal may end before; the output then goes on.
    """
    with raw_terminal(_stdin()), _screen() as seen:
        output = asyncio.create_task(_show(reader, seen))
        keys = asyncio.create_task(_type(writer, escape))
        try:
            await asyncio.wait({output, keys}, return_when=asyncio.FIRST_COMPLETED)
            if keys.done() and not keys.result():
                await output
            return not output.done()
        finally:
            for task in (output, keys):
                task.cancel()
            await asyncio.gather(output, keys, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.contextmanager
def _screen() -> Iterator[_Screen]:
    """The terminal that the guest writes to, afterwards as a user expects it."""
    seen = _Screen()
    try:
        yield seen
    finally:
        if sys.stdout is not None and sys.stdout.isatty():
            other = b"\x1b[?1049l" if seen.other else b""
            with contextlib.suppress(OSError):
                sys.stdout.buffer.write(other + _RESTORE)
                sys.stdout.buffer.flush()


@dataclass
class _Screen:
    """Whether the guest has taken the terminal's other screen."""

    other: bool = False
    _rest: bytes = b""

    def saw(self, chunk: bytes) -> None:
        text = self._rest + chunk
        for match in _SCREEN.finditer(text):
            self.other = match[1] == b"h"
        self._rest = text[-_SCREEN_MOST:]


async def _show(reader: asyncio.StreamReader, seen: _Screen) -> None:
    while chunk := await reader.read(_CHUNK):
        seen.saw(chunk)
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


async def _type(writer: asyncio.StreamWriter, escape: bytes | None) -> bool:
    """True when the user typed the escape or there was no input at all, False
    at the end of the input."""
    typed = False
    async for chunk in read_fd(_stdin()):
        typed = True
        if escape and os.isatty(_stdin()) and escape in chunk:
            # What was typed before it is the guest's, as in a paste.
            writer.write(chunk.partition(escape)[0])
            return True
        writer.write(chunk)
        await writer.drain()
    # Nobody will ever type anything, so nobody is there to leave either.
    return not typed


def _stdin() -> int:
    """Standard input; -1 when it was closed, which reads as its end."""
    return sys.stdin.fileno() if sys.stdin is not None else -1


async def read_fd(fd: int) -> AsyncGenerator[bytes, None]:
    """What comes from a descriptor, in parts, to its end.

    A regular file is always ready and epoll(7) refuses it; everything else is
    read when the loop says so, which no thread could be interrupted in.
    """
    with contextlib.suppress(OSError):  # only a pipe has a size to set
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    while True:
        with contextlib.suppress(PermissionError, ValueError):
            await readable(fd)
        try:
            chunk = os.read(fd, _PIPE_SIZE)
        except BlockingIOError:
            continue
        except OSError:  # a terminal that has gone
            return
        if not chunk:
            return
        yield chunk
