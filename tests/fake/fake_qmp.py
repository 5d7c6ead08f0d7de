"""A scripted QMP server: it says what the test tells it to, at its pace."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
        "capabilities": ["oob"],
    }
}


class Peer:
    """The server's end of one connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer = reader, writer
        self._text = ""

    async def read(self) -> dict[str, Any]:
        """The next command. Raises EOFError when the client is gone."""
        while True:
            # A client need not end its commands with a newline.
            with contextlib.suppress(json.JSONDecodeError):
                command, end = json.JSONDecoder().raw_decode(self._text.lstrip())
                self._text = self._text.lstrip()[end:]
                return dict(command)
            data = await self._reader.read(65536)
            if not data:
                raise EOFError
            self._text += data.decode()

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send(self, message: Any) -> None:
        await self.raw(json.dumps(message).encode() + b"\r\n")

    async def reply(self, command: dict[str, Any], value: Any = None) -> None:
        await self.send({"return": value or {}, "id": command["id"]})

    async def refuse(self, command: dict[str, Any], class_: str, desc: str) -> None:
        error = {"class": class_, "desc": desc}
        await self.send({"error": error, "id": command["id"]})

    async def event(self, name: str, **data: Any) -> None:
        stamp = {"seconds": 1, "microseconds": 0}
        await self.send({"event": name, "data": data, "timestamp": stamp})

    async def greet(self) -> None:
        """Greeting and negotiation, as QEMU does them."""
        await self.send(GREETING)
        negotiation = await self.read()
        assert negotiation["execute"] == "qmp_capabilities"
        await self.send({"return": {}})

    async def gone(self) -> None:
        """Waits until the client has closed its end."""
        while await self._reader.read(65536):
            pass


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(path: Path, script: Script) -> AsyncIterator[None]:
    """Serves one client at a time, as QEMU's monitor does; the others wait
    without a greeting. What a script raises fails the test."""
    turn = asyncio.Lock()
    tasks: set[asyncio.Task[Any]] = set()
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            async with turn:
                await script(Peer(reader, writer))
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        pending = list(tasks)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await server.wait_closed()
    if failures:
        raise failures[0]
