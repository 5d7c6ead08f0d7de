"""A short look at a monitor: connect, ask, hang up, all in one breath.

Whoever watches many VMs must not keep their monitors, which serve one client
at a time, from others. A `Session` for each look costs five times as much as
this: there is no task, no log, and what is asked is sent in one piece before
QEMU has greeted, for it waits in the socket.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemuctl.errors import CommandError, QmpError, WaitTimeout
from qemuctl.peers import json_object
from qemuctl.qmp.commands import Command

_CHUNK = 256 * 1024
_LONGEST = 16 * 1024 * 1024
_NEGOTIATION = b'{"execute":"qmp_capabilities"}\n'


async def glance(path: Path, commands: Sequence[Command[Any]]) -> list[Any]:
    """The replies to some commands, typed, in their order; a command that was
    refused has its CommandError in its place.

    It has no time limit: QEMU takes clients one after the other. Raises
    QmpError when nobody listens or QEMU hangs up, WaitTimeout when too many
    wait already.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
            lines = await _converse(client, commands)
        except BlockingIOError as error:
            # asyncio would take a full queue for a connection in progress.
            raise WaitTimeout("a free place in the monitor's queue", 0) from error
        except OSError as error:
            raise QmpError(f"no QMP at {path}: {error.strerror}") from error
    return [_reply(*pair) for pair in zip(commands, lines, strict=True)]


async def _converse(
    client: socket.socket, commands: Sequence[Command[Any]]
) -> list[dict[str, Any]]:
    """Sends all at once and gives the replies, which carry their number."""
    loop = asyncio.get_running_loop()
    requests = [
        json.dumps({"execute": c.NAME, "arguments": c.arguments(), "id": number})
        for number, c in enumerate(commands)
    ]
    await loop.sock_sendall(client, _NEGOTIATION + "\n".join(requests).encode())
    replies: dict[int, dict[str, Any]] = {}
    numbers = list(range(len(commands)))
    rest = b""
    while len(replies) < len(commands):
        data = await loop.sock_recv(client, _CHUNK)
        if not data:
            raise QmpError("QEMU hung up on us")
        if len(rest) > _LONGEST:
            raise QmpError("an answer without an end")
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            message = _parsed(line)
            # Greeting, negotiation and events have no number of ours.
            if message.get("id") in numbers:
                replies[message["id"]] = message
    return [replies[number] for number in numbers]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return json_object(line)
    except ValueError as error:
        raise QmpError(f"not QMP: {line[:60]!r}") from error


def _reply(command: Command[Any], message: dict[str, Any]) -> Any:
    error = message.get("error")
    if isinstance(error, dict):
        class_, desc = (str(error.get(key, "")) for key in ("class", "desc"))
        return CommandError(command.NAME, class_, desc)
    if "return" not in message:
        raise QmpError(f"neither a reply nor an error to {command.NAME}")
    return command.reply(message["return"])
