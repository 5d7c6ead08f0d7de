"""A scripted guest agent behind a pipe that remembers nothing of sessions."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from fake_qmp import Peer, Script

SYNC = "guest-sync-delimited"


class AgentPeer(Peer):
    """The agent's end: commands come by lines, a sync with 0xFF before it."""

    async def read(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line:
            raise EOFError
        return dict(json.loads(line.rpartition(b"\xff")[2]))

    async def sync(self, before: bytes = b"") -> None:
        """Answers a sync, after what is still in the pipe."""
        request = await self.read()
        assert request["execute"] == SYNC, request
        reply = json.dumps({"return": request["arguments"]["id"]}).encode()
        await self.raw(before + b"\xff" + reply + b"\n")

    async def answer(self, value: Any) -> dict[str, Any]:
        """Reads a request, gives this return value, and tells the request."""
        request = await self.read()
        await self.raw(json.dumps({"return": value}).encode() + b"\n")
        return request


def as_agent(script: Any) -> Script:
    """The script of an agent as `fake_qmp.serving` takes it."""

    async def run(peer: Peer) -> None:
        await script(AgentPeer(peer._reader, peer._writer))

    return run


class FakeGuest:
    """An agent with an answer for each request, of a guest that runs nothing.

    ``answers`` gives the return values of a command, one after the other, the
    last one for ever; an exception class refuses it.
    """

    def __init__(self, answers: dict[str, list[Any]]) -> None:
        self.answers = answers
        self.seen: list[tuple[str, dict[str, Any]]] = []

    async def __call__(self, peer: AgentPeer) -> None:
        while True:
            request = await peer.read()
            name, arguments = request["execute"], request.get("arguments", {})
            if name == SYNC:
                reply = json.dumps({"return": arguments["id"]}).encode()
                await peer.raw(b"\xff" + reply + b"\n")
                continue
            self.seen.append((name, arguments))
            left = self.answers.get(name, [{}])
            value = left.pop(0) if len(left) > 1 else left[0]
            await asyncio.sleep(0)
            if value is Exception:
                error = {"class": "GenericError", "desc": "no"}
                await peer.raw(json.dumps({"error": error}).encode() + b"\n")
            else:
                await peer.raw(json.dumps({"return": value}).encode() + b"\n")


# guest-exec-status of a command that has ended well.
EXITED = {"exited": True, "exitcode": 0}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
