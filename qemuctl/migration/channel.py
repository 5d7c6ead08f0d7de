"""What the two sides say to each other: JSON lines, and files between them.

A request is ``{"do": …, "id": …}``; the answer has the same id, and ``"ok"`` or
``"error"``; ``{"say": …}`` comes before it as often as there is something to tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemuctl.errors import QemuctlError
from qemuctl.peers import Lines, json_object

PROTOCOL = 2
# An offer holds two specs, of 1 MiB each at most, as JSON.
_LONGEST = 16 * 1024 * 1024
_PART = 256 * 1024
SILENCE = 60.0
"""Seconds without a word after which the other side has gone: it speaks all the
while."""


class ChannelLost(QemuctlError):
    """The other side does not answer: it has gone, or the network has."""


class Channel:
    """One end of it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer, self._lines = reader, writer, Lines(reader)
        self._asking = asyncio.Lock()
        self._ids = itertools.count(1)

    @classmethod
    async def of_stdio(cls) -> Channel:
        """The end of a process that was started for it. What else is printed goes
        to standard error from here on."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(0), "rb")
        )
        out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, out
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        sys.stdout = sys.stderr
        return cls(reader, writer)

    async def send(self, message: dict[str, Any]) -> None:
        """Raises ChannelLost."""
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise ChannelLost("the other side has gone") from error

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises ChannelLost at the end, or for nonsense."""
        line = b""
        try:
            line = await self._lines.next(_LONGEST)
            message = json_object(line) if line.endswith(b"\n") else None
        except (OSError, ValueError) as error:
            said = repr(line[:200].decode(errors="replace").strip())
            raise ChannelLost(f"the other side makes no sense: {said}") from error
        if message is None:
            raise ChannelLost("the other side has gone")
        return message

    async def ask(
        self,
        do: str,
        *,
        timeout: float | None,
        say: Callable[[str], None] = lambda _: None,
        file: Path | None = None,
        **arguments: Any,
    ) -> Any:
        """The other side's answer to one request, with a file behind it if there is
        one. Raises ChannelLost, also without an answer in ``timeout`` seconds, and
        what the other side says went wrong as QemuctlError."""
        async with self._asking:
            id_ = next(self._ids)
            try:
                async with asyncio.timeout(timeout):
                    await self.send({"do": do, "id": id_, **arguments})
                    if file is not None:
                        await self._send_file(file)
                    while True:
                        reply = await self.receive()
                        if "say" in reply:
                            say(str(reply["say"]))
                        elif reply.get("id") != id_:
                            continue  # to a question whose asker was called off
                        elif "error" in reply:
                            raise QemuctlError(
                                str(reply["error"]), hint=reply.get("hint")
                            )
                        elif "ok" in reply:
                            return reply["ok"]
            except TimeoutError as error:
                raise ChannelLost(
                    f"the other side has not answered for {timeout:g} s: {do}"
                ) from error

    async def _send_file(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                while part := await asyncio.to_thread(file.read, _PART):
                    self._writer.write(part)
                    await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise ChannelLost(f"cannot send {path}: {error}") from error

    async def receive_file(self, path: Path, size: int, sha256: str) -> None:
        """Makes a file of what comes next. Raises ChannelLost, and QemuctlError where
        it is not what was announced, or there is no room."""
        digest, left = hashlib.sha256(), size
        problem: OSError | None = None
        with path.open("xb") as file:
            while left:
                part = await self._part(min(left, _PART))
                if not part:
                    raise ChannelLost("the other side has gone")
                left -= len(part)
                digest.update(part)
                if problem is None:  # what comes is to be read to its end all the same
                    try:
                        file.write(part)
                    except OSError as error:
                        problem = error
        if problem is not None:
            raise QemuctlError(f"cannot write {path.name}: {problem.strerror}")
        if digest.hexdigest() != sha256:
            raise QemuctlError(f"the checksum of {path.name} is wrong")

    async def _part(self, size: int) -> bytes:
        try:
            async with asyncio.timeout(SILENCE):
                return await self._reader.read(size)
        except TimeoutError as error:
            raise ChannelLost(f"not a word for {SILENCE:g} s") from error

    async def close(self) -> None:
        """Hangs up."""
        self._writer.close()
        with contextlib.suppress(OSError, RuntimeError):
            await self._writer.wait_closed()
