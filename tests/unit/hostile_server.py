"""An HTTP server that does what its test says, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

BODY = bytes(range(256)) * 4096 * 4  # 4 MiB that differ from byte to byte
MIB = 1024**2
_PIECE = 65536
_REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found"}


@dataclass(frozen=True)
class Answer:
    """How one GET is answered: well, unless a field says otherwise."""

    body: bytes = BODY
    etag: str | None = '"one"'
    modified: str | None = None
    status: int = 200
    headers: tuple[str, ...] = ()
    ranges: bool = True
    if_range: bool = True
    chunked: bool = False
    length: int | str | None = "true"  # None: not said
    content_range: str | None = None
    cut: int | None = None  # the connection breaks after so many bytes
    stall: int | None = None  # nothing more comes after so many bytes
    drip: float | None = None  # then a byte at a time, so many seconds apart
    mute: bool = False  # nothing comes at all
    gate: asyncio.Event | None = None  # the second half waits for it
    excess: bytes = b""


@dataclass
class HostileServer:
    """Each GET of a path takes the next of its answers; the last one stays."""

    port: int = 0
    answers: dict[str, list[Answer]] = field(
        default_factory=lambda: defaultdict(lambda: [Answer()])
    )
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0  # bytes of bodies

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/image"

    def answer(self, *answers: Answer, path: str = "/image") -> None:
        self.answers[path] = list(answers)

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request, None where there was none."""
        return [request.get("range") for request in self.requests]

    async def handle(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        first = await reader.readexactly(1)
        if first == b"\x16":  # a TLS client
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return False
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.strip().splitlines()
        path = line.split()[1]
        request = {"path": path}
        for each in fields:
            name, _, value = each.partition(":")
            request[name.strip().lower()] = value.strip()
        self.requests.append(request)
        left = self.answers[path]
        answer = left.pop(0) if len(left) > 1 else left[0]
        return await self._reply(answer, request, reader, writer)

    async def _reply(
        self,
        answer: Answer,
        request: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if answer.mute:
            await reader.read()  # until the client has had enough
            return False
        status, start, extra = _range(answer, request)
        body = answer.body[start:] + answer.excess if status in (200, 206) else b""
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Whatever')}", *extra]
        if answer.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif answer.length is not None:
            length = len(body) if answer.length == "true" else answer.length
            lines.append(f"Content-Length: {length}")
        lines.append("Date: Mon, 23 Nov 2026 12:00:00 GMT")
        lines += [f"ETag: {answer.etag}"] if answer.etag else []
        lines += [f"Last-Modified: {answer.modified}"] if answer.modified else []
        writer.write("\r\n".join([*lines, *answer.headers, "", ""]).encode())
        end = min(x for x in (answer.cut, answer.stall, len(body)) if x is not None)
        for offset in range(0, end, _PIECE):
            piece = body[offset : min(offset + _PIECE, end)]
            if answer.gate and offset >= end // 2:
                await answer.gate.wait()
            self.sent += len(piece)
            frame = b"%x\r\n" % len(piece) if answer.chunked else b""
            writer.write(frame + piece + (b"\r\n" if answer.chunked else b""))
            await writer.drain()
        while answer.drip is not None:
            await asyncio.sleep(answer.drip)
            writer.write(body[end : end + 1])
            await writer.drain()  # until the client has had enough
            end += 1
        if answer.stall is not None:
            await reader.read()  # until the client has had enough
        if answer.cut is not None or answer.length is None:
            if answer.chunked and answer.cut is None:
                writer.write(b"0\r\n\r\n")
            return False
        writer.write(b"0\r\n\r\n" if answer.chunked else b"")
        await writer.drain()
        return answer.length == "true"


def _range(answer: Answer, request: dict[str, str]) -> tuple[int, int, list[str]]:
    """Status, first byte and headers: RFC 9110, 14.2 and 13.1.5."""
    match = re.fullmatch(r"bytes=(\d+)-", request.get("range", ""))
    known = (None, answer.etag, answer.modified)
    if answer.status != 200 or not match or not answer.ranges:
        return answer.status, 0, []
    if answer.if_range and request.get("if-range") not in known:
        return 200, 0, []
    start, total = int(match[1]), len(answer.body)
    if start >= total:
        return 416, 0, [f"Content-Range: bytes */{total}"]
    content_range = answer.content_range or f"bytes {start}-{total - 1}/{total}"
    return 206, start, [f"Content-Range: {content_range}"]


@contextlib.asynccontextmanager
async def hostile_server() -> AsyncIterator[HostileServer]:
    server = HostileServer()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, limit=MIB)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
