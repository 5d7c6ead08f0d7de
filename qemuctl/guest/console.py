"""The serial console on the user's terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from qemuctl.errors import HostError, StateError
from qemuctl.follow import readable
from qemuctl.process.lock import take

ESCAPE = b"\x1d"  # Ctrl-]
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


async def interact(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Joins standard input and output to the console until either side ends.

    True when the user left by Ctrl-], False when the VM ended. Input that is
    no terminal may end before; the output then goes on.
    """
    with raw_terminal(_stdin()):
        output = asyncio.create_task(_show(reader))
        keys = asyncio.create_task(_type(writer))
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


async def _show(reader: asyncio.StreamReader) -> None:
    while chunk := await reader.read(_CHUNK):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


async def _type(writer: asyncio.StreamWriter) -> bool:
    """True when the user typed the escape or there was no input at all, False
    at the end of the input."""
    typed = False
    async for chunk in read_fd(_stdin()):
        typed = True
        if os.isatty(_stdin()) and ESCAPE in chunk:
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
