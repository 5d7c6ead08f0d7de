"""The port for raw bytes: a second channel beside the agent's, at full speed.

QEMU joins the socket of its chardev to a virtio-serial port, which the guest
finds by the name in ``/sys/class/virtio-ports``. The agent starts a few lines
of shell in the guest, and the bytes go over the port as they are.

What keeps one conversation out of the next:

- On the host a lock lets one of them at a time connect; the kernel lets go of
  it whatever killed its holder.
- In the guest a port opens once. A new script ends whoever still has it; its
  close drops what nobody read, and QEMU passes nothing to a closed port.
- The guest speaks first, with a random token, and the host sends nothing
  before it and skips whatever comes before it.
- When the host goes away, a read in the guest ends as at the end of a file
  (a write would wait for the next host, so a script that writes also reads).

(Linux, drivers/char/virtio_console.c; QEMU, hw/char/virtio-serial-bus.c.)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import os
import secrets
from collections.abc import (
    AsyncIterator,
    Coroutine,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from asyncinotify import Inotify, Mask

from qemuctl.errors import UsageError
from qemuctl.guest.agent import Agent, makes_sense
from qemuctl.guest.conversation import CHUNK, CLEANUP, Conversation, Ended, NoPort
from qemuctl.guest.stream import run_streaming
from qemuctl.waiting import waiting_for

# Without inotify, which is scarce, nothing tells that a lock is free again.
_LOOK_EVERY = 0.1

# $1 is the token, $2 says where the bytes go: `port`, or `pipe` for the
# script's own input and output. Relative names count from the home folder, which
# an agent that init started knows nothing of: the kernel calls it /.
PROLOGUE = """
token=$1 via=$2
shift 2
umask 077
[ "${HOME:-/}" != / ] || [ "$(id -u)" != 0 ] || HOME=~root
cd "${HOME:-/}" 2>/dev/null || cd /
named() {
  case $1 in /*) named=$1 ;; "~" | "~/"*) named=.${1#"~"} ;; *) named=./$1 ;; esac
}
say() { printf '\\n%s\\n' "$*" >&2; }
die() { say "$*"; exit 1; }
others() {
  for open in /proc/[0-9]*/fd/*; do
    [ "$open" -ef "$port" ] || continue
    holder=${open#/proc/} holder=${holder%%/*}
    [ "$holder" = $$ ] || kill "-$1" "$holder"
  done 2>/dev/null
}
if [ "$via" = port ]; then
  port=
  for name in /sys/class/virtio-ports/*/name; do
    said= && read -r said 2>/dev/null <"$name"
    node=${name%/name}
    [ "$said" = qemuctl.copy ] && port=/dev/${node##*/}
  done
  [ -c "$port" ] || exit 71
  tries=0
  until { :; } 2>/dev/null 3<>"$port"; do
    tries=$((tries + 1))
    [ $tries -le 60 ] || die "$port is in use"
    if [ $tries -le 30 ]; then others TERM; else others KILL; fi
    sleep 0.1
  done
  exec 3<>"$port" 4>&3
else
  exec 3<&0 4>&1
fi
"""


class Way(Protocol):
    """A way into the guest: runs a script there and gives the talk with it."""

    def __call__(
        self, script: str, arguments: Sequence[str]
    ) -> AbstractAsyncContextManager[Conversation]: ...


def through_agent(agent: Agent, socket: Path) -> Way:
    """The way over the port, one copy after the other; over the agent in parts
    (slow) where the VM or the guest has no port.

    ``socket`` is the host's end of the port. At the end of the talk, however
    it comes, the script ends. Raises CopyError with the script's own words.
    """

    @contextlib.asynccontextmanager
    async def way(script: str, arguments: Sequence[str]) -> AsyncIterator[Conversation]:
        token = new_token()
        async with contextlib.AsyncExitStack() as stack:
            try:
                words = guest_argv(script, token, "port", arguments)
                talk = _port(agent, socket, token, words)
                begun = await stack.enter_async_context(talk)
            except NoPort:
                words = guest_argv(script, token, "pipe", arguments)
                talk = _pipe(agent, token, words)
                begun = await stack.enter_async_context(talk)
            yield begun

    return way


def new_token() -> str:
    """What tells one conversation from another: 128 random bits."""
    return secrets.token_hex(16)


def guest_argv(
    script: str, token: str, via: str, arguments: Sequence[str]
) -> list[str]:
    """What to run in the guest. Raises UsageError for names it cannot have."""
    try:
        for argument in arguments:
            argument.encode()
            if "\0" in argument:
                raise UsageError(f"not a name: {argument!r}")
    except UnicodeEncodeError as error:
        # The agent's JSON has no way to say it.
        raise UsageError(f"the name is not UTF-8: {argument!r}") from error
    return ["/bin/sh", "-c", PROLOGUE + script, "sh", token, via, *arguments]


@contextlib.asynccontextmanager
async def _port(
    agent: Agent, socket: Path, token: str, argv: Sequence[str]
) -> AsyncIterator[Conversation]:
    if not socket.exists():
        raise NoPort("the VM has no port for copying")
    async with _turn(socket.with_suffix(".lock")):
        try:
            reader, writer = await asyncio.open_unix_connection(socket, limit=4 * CHUNK)
        except OSError as error:
            raise NoPort(f"no port for copying: {error.strerror}") from error

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            pid = await agent.start(argv, capture=True)
            async with watched(_end(agent, pid)) as end:
                talk = Conversation(token, reader, send, end)
                try:
                    await talk.begun()
                    yield talk
                except Exception:
                    writer.transport.abort()
                    await _cleaned_up(end)
                    raise
        finally:
            # Bytes that still wait would keep the connection, and the guest.
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _cleaned_up(end: asyncio.Task[Ended]) -> None:
    """Lets a script whose host went away remove what it had begun."""
    await asyncio.wait({end}, timeout=CLEANUP)


async def _end(agent: Agent, pid: int) -> Ended:
    """The end of a script (guest-exec-status)."""
    status = await agent.finished(pid)
    with makes_sense("guest-exec-status"):
        code = status.get("exitcode")
        words = base64.b64decode(status.get("err-data", ""))
        return Ended(
            int(code) if code is not None else 128 + int(status["signal"]),
            words.decode(errors="replace"),
        )


@contextlib.asynccontextmanager
async def _pipe(
    agent: Agent, token: str, argv: Sequence[str]
) -> AsyncIterator[Conversation]:
    """The same over guest-file-read and -write, through the guest's files."""
    reader = asyncio.StreamReader(limit=4 * CHUNK)
    queue: asyncio.Queue[bytes] = asyncio.Queue(1)

    async def stdin() -> AsyncIterator[bytes]:
        while True:
            yield await queue.get()

    async def run() -> Ended:
        words = bytearray()
        status = await run_streaming(
            agent, argv, stdin=stdin(), stdout=reader.feed_data, stderr=words.extend
        )
        return Ended(status, words.decode(errors="replace"))

    async with watched(run()) as end:
        talk = Conversation(token, reader, queue.put, end)
        await talk.begun()
        yield talk


@contextlib.asynccontextmanager
async def watched(
    work: Coroutine[Any, Any, Ended],
) -> AsyncIterator[asyncio.Task[Ended]]:
    """A task for the block that waits for the end of a script."""
    end = asyncio.create_task(work)
    try:
        yield end
    finally:
        end.cancel()
        await asyncio.gather(end, return_exceptions=True)


@contextlib.asynccontextmanager
async def _turn(path: Path) -> AsyncIterator[None]:
    """Waits for the lock; its holder's close of the file tells that it is free."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.ExitStack() as stack:
            inotify = None
            with contextlib.suppress(OSError):
                inotify = stack.enter_context(Inotify())
                inotify.add_watch(path, Mask.CLOSE_WRITE)
            stack.enter_context(waiting_for("another copy from or to this guest"))
            while not _taken(fd):
                if inotify is not None:
                    await inotify.get()
                else:
                    await asyncio.sleep(_LOOK_EVERY)
        yield
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
