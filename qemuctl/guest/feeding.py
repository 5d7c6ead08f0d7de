"""The input of a command in the guest: all of it at the start, or in parts.

guest-exec takes an input that is complete. One that comes while the command
runs goes through files, each a part, which a shell in the guest pipes into it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Self

from qemuctl.errors import AgentError, AgentRefused, QemuctlError
from qemuctl.guest.agent import Agent, makes_sense

PART = 1024 * 1024
"""Bytes of a part at most, and of an input that is given at the start."""
# Seconds in which an input may end that is given at the start.
_AT_ONCE = 0.01
_LOOK_EVERY = 0.01

# For `stream`, whose `$f` names the files. The feeder reads names of parts from
# `next` and pipes each into the command; an empty name is the end of the input. (Were
# the end of `next` the signal, an input that ends at once could end before anybody
# listens.)
FEEDER = """
[ "$f" ] && mkdir -m 700 "$f.in" && mkfifo "$f.in/next" "$f.in/pipe" || {
  rm -rf "$f.out" "$f.err" "$f.in"
  echo "$token"
  exit 1
}
while read -r part && [ "$part" ]; do
  cat "$f.in/$part"
  rm -f "$f.in/$part"
done <>"$f.in/next" >"$f.in/pipe" 3<&- 4>&- 5>&- 6>&- &
feeder=$!
"""


class Input:
    """An input, of which we know as soon as we can whether it is short.

    ``whole`` is all of it; None while it goes on.
    """

    def __init__(self, parts: AsyncIterator[bytes] | None) -> None:
        self.whole: bytes | None = b"" if parts is None else None
        self._parts = parts
        self._head = b""
        self._coming: asyncio.Task[bytes | None] | None = None

    async def look(self) -> None:
        """Takes what is there at once."""
        while self.whole is None and len(self._head) <= PART:
            self._coming = self._coming or asyncio.create_task(self._next())
            await asyncio.wait({self._coming}, timeout=_AT_ONCE)
            if not self._coming.done():
                return
            part, self._coming = self._coming.result(), None
            if part is None:
                self.whole = self._head
            else:
                self._head += part

    async def _next(self) -> bytes | None:
        assert self._parts is not None
        return await anext(self._parts, None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """All parts, from the first."""
        if self._head:
            yield self._head
        while self.whole is None:
            self._coming = self._coming or asyncio.create_task(self._next())
            part, self._coming = await asyncio.shield(self._coming), None
            if part is None:
                return
            yield part

    async def gather(self, most: int) -> bool:
        """Waits for all of it, unless there are more than ``most`` bytes."""
        whole = bytearray()
        async for part in self:
            whole += part
            if len(whole) > most:
                return False
        self.whole = bytes(whole)
        return True

    async def close(self) -> None:
        """Ends waiting for what is still to come."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)


class Feeding:
    """Sends an input in parts, each a file whose name goes down `next`."""

    def __init__(self, agent: Agent, folder: str, following: int) -> None:
        self._agent = agent
        self._folder = folder
        self._following = following
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, agent: Agent, folder: str, stdin: Input) -> Self:
        """Starts sending. Raises AgentRefused where the guest has no such folder."""
        # r+ does not wait for the other side of the pipe, as w would.
        feeding = cls(agent, folder, await open_file(agent, f"{folder}/next", "r+"))
        feeding._task = asyncio.create_task(feeding._feed(stdin))
        return feeding

    def check(self) -> None:
        """Raises what has ended the sending before its time."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Sends no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Closes the guest's pipe, after `stop`."""
        await close_file(self._agent, self._following)

    async def _feed(self, stdin: Input) -> None:
        number = 0
        async for data in stdin:
            for start in range(0, len(data), PART):
                number += 1
                # Two parts at most wait in the guest, however slow its reader.
                await self._until_taken(f"{self._folder}/part{number - 2}")
                part = data[start : start + PART]
                if not await self._put(f"part{number}", part):
                    return  # the command has ended, and its folder is gone
        await self._tell(b"\n")

    async def _put(self, name: str, part: bytes) -> bool:
        try:
            handle = await open_file(self._agent, f"{self._folder}/{name}", "w")
        except AgentRefused:
            return False
        await _write(self._agent, handle, part)
        await self._agent.request("guest-file-close", {"handle": handle})
        await self._tell(f"{name}\n".encode())
        return True

    async def _tell(self, line: bytes) -> None:
        await _write(self._agent, self._following, line)
        await self._agent.request("guest-file-flush", {"handle": self._following})

    async def _until_taken(self, path: str) -> None:
        """Waits until the feeder has removed a part; the agent has no event for it."""
        while True:
            try:
                handle = await open_file(self._agent, path, "r")
            except AgentRefused:
                return
            await self._agent.request("guest-file-close", {"handle": handle})
            await asyncio.sleep(_LOOK_EVERY)


async def open_file(agent: Agent, path: str, mode: str) -> int:
    """The handle of a file in the guest (guest-file-open); raises as `request` does."""
    handle = await agent.request("guest-file-open", {"path": path, "mode": mode})
    with makes_sense("guest-file-open"):
        return int(handle)


async def close_file(agent: Agent, handle: int) -> None:
    """Closes a file in the guest (guest-file-close); one that cannot be told does not
    matter."""
    with contextlib.suppress(QemuctlError):
        await agent.request("guest-file-close", {"handle": handle})


async def _write(agent: Agent, handle: int, data: bytes) -> None:
    while data:
        text = base64.b64encode(data).decode()
        reply = await agent.request(
            "guest-file-write", {"handle": handle, "buf-b64": text}
        )
        with makes_sense("guest-file-write"):
            taken = int(reply["count"])
            if taken < 1:
                raise AgentError("the guest took none of the input: is it full?")
            data = data[taken:]
