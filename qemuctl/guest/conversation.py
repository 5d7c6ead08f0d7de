"""What the host and a script in the guest say to each other on the way for raw bytes
(see `port`): the script's first line, bytes either way, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from qemuctl.errors import AgentError, QemuctlError, WaitTimeout
from qemuctl.structs import Struct
from qemuctl.tail import plain
from qemuctl.waiting import waiting_for

T = TypeVar("T")

CHUNK = 1024 * 1024
# Statuses of a script that ends for one of these reasons.
_NO_PORT = 71
_NO_FOLDER = 72
_HEAD_MOST = 4096
# Seconds that the last bytes may take after the end of whoever sent them.
_LAST_BYTES = 5.0
CLEANUP = 10.0
"""Seconds for a script whose other side has gone to end."""
# Seconds in which a script that was started says its first word. The first one after
# a boot reads the shell from the disk, and an emulated guest may be busy.
_FIRST_WORD = 60.0
# Seconds without a byte after which people are told.
_STALL = 10.0
_STALLED = "the guest to go on with the copy: it is paused, or hangs"


class NoPort(AgentError):
    """The VM, or its guest, has no port for raw bytes."""


class CopyError(QemuctlError):
    """The guest will not, or cannot, or what arrived is not what was sent."""


class NotAFolder(CopyError):
    """A folder was expected in the guest, and something else is there."""


class Ended(Struct, kw_only=False):
    """How a script in the guest ended, and what it said."""

    status: int
    words: str

    @property
    def result(self) -> str:
        """The last line that it said."""
        return self.words.rstrip("\n").rpartition("\n")[2]


class Conversation:
    """One script in the guest, what comes from it, and the way to it.

    ``head`` holds the words after the token in its first line.
    """

    def __init__(
        self,
        token: str,
        reader: asyncio.StreamReader,
        send: Callable[[bytes], Coroutine[Any, Any, None]],
        end: asyncio.Task[Ended],
    ) -> None:
        self.head: list[str] = []
        self._token = token.encode()
        self._reader, self._send, self._end = reader, send, end
        self._held = b""

    async def begun(self) -> None:
        """Waits for the script's first line. Raises AgentError, NoPort, and
        WaitTimeout when it does not come."""
        stage = "the guest to begin the copy"
        try:
            async with asyncio.timeout(_FIRST_WORD):
                with waiting_for(stage):
                    await self._first_line()
        except TimeoutError as error:
            raise WaitTimeout(stage, _FIRST_WORD) from error

    async def _first_line(self) -> None:
        while self._token not in self._held:  # left of an earlier conversation
            self._held = self._held[-len(self._token) :] + await self._more()
        self._held = self._held.partition(self._token)[2]
        while b"\n" not in self._held:
            if len(self._held) > _HEAD_MOST:
                raise AgentError("the guest's side of the copy makes no sense")
            self._held += await self._more()
        line, _, self._held = self._held.partition(b"\n")
        self.head = line.decode(errors="replace").split()

    async def _more(self) -> bytes:
        try:
            with waiting_for(_STALLED, say_after=_STALL):
                chunk = await self._alive(self._reader.read(CHUNK))
        except OSError as error:
            raise await self._closed() from error
        if not chunk:
            raise await self._closed()
        return chunk

    async def _closed(self) -> AgentError:
        """The error for a way that closed. Raises the script's own, if it has one:
        its end may be told a moment later."""
        await asyncio.wait({self._end}, timeout=CLEANUP)
        if self._end.done():
            _checked(self._end.result())
        return AgentError("the way into the guest closed in the middle of a copy")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """What the script sends up to the token that ends it."""
        while not self._held.endswith(self._token):
            sure = len(self._held) - len(self._token)
            if sure > 0:
                yield self._held[:sure]
                self._held = self._held[sure:]
            self._held += await self._more()
        if rest := self._held.removesuffix(self._token):
            yield rest
        self._held = b""

    async def send(self, data: bytes) -> None:
        """Sends bytes to the script, as fast as it takes them."""
        try:
            with waiting_for(_STALLED, say_after=_STALL):
                await self._alive(self._send(data))
        except OSError as error:
            raise await self._closed() from error

    async def ended(self) -> Ended:
        """Waits until the script has ended well. Raises CopyError."""
        return _checked(await asyncio.shield(self._end))

    async def _alive(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, unless the script ends before."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._end}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                _checked(self._end.result())
                # What it sent before its end may still be on its way.
                await asyncio.wait({task}, timeout=_LAST_BYTES)
            if not task.done():
                raise AgentError("the guest's side of the copy ended too soon")
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _checked(ended: Ended) -> Ended:
    """The same, unless the script failed. Raises CopyError, NoPort."""
    if ended.status == _NO_PORT:
        raise NoPort("the guest has no port for copying")
    if ended.status == _NO_FOLDER:
        raise NotAFolder(_spoken(ended.words))
    if ended.status:
        reason = _spoken(ended.words) or f"status {ended.status}"
        raise CopyError(f"the guest cannot copy: {reason}")
    return ended


def _spoken(words: str) -> str:
    """What a script said on its standard error, without dd's statistics."""
    return "; ".join(
        line.strip()
        for line in plain(words).splitlines()
        if line.strip() and " records " not in line and " copied" not in line
    )
