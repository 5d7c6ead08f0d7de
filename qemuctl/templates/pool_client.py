"""Taking a fork from the shared pool of its template, if one runs.

::

    client ──{"take": MAKING}──► pool
           ◄──{"name": …, "undertaker": …} and the two pipes that own the VM──

One packet each way. The pipes that are on their way belong to the kernel: whichever
side dies in between, the VM either has an owner or dies too, and nobody needs to
say that something arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from qemuctl.boot.throwaway import Attached, adopt
from qemuctl.descriptors import readable
from qemuctl.errors import QemuctlError
from qemuctl.paths import PoolPaths
from qemuctl.process import Identity
from qemuctl.registry.template import Template

# A pool answers in milliseconds, from what it has; one that cannot is stuck.
PATIENCE = 5.0
PACKET = 64 * 1024
_PIPES = 2


async def pooled(template: Template) -> Attached | None:
    """A parked fork from the template's shared pool, which is this process's own now.

    None when no pool runs, when none is parked there at the moment, and whatever
    else is wrong: a fork can always be started without it.
    """
    path = PoolPaths(template.name).socket
    answer = await ask(path, {"take": f"{template.content}"})
    if answer is None:
        return None
    reply, pipes = answer
    try:
        name, undertaker = str(reply["name"]), Identity(**reply["undertaker"])
        first, second = pipes
    except (KeyError, TypeError, ValueError):
        _close(pipes)
        return None
    with contextlib.suppress(QemuctlError, OSError):
        return await adopt(name, (first, second), undertaker)
    return None


async def ask(
    path: Path, request: dict[str, Any]
) -> tuple[dict[str, Any], list[int]] | None:
    """A pool's answer and the descriptors that came with it; None when it gives
    none in time, or nobody is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(connection, os.fspath(path))
                await loop.sock_sendall(connection, json.dumps(request).encode())
                await readable(connection.fileno())
        except (OSError, TimeoutError):
            return None
        return _received(connection)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    pipes: list[int] = []
    try:
        data, pipes, _, _ = socket.recv_fds(
            connection, PACKET, _PIPES, socket.MSG_CMSG_CLOEXEC
        )
        reply = json.loads(data)
        if isinstance(reply, dict):
            return reply, list(pipes)
    except (OSError, ValueError):
        pass
    _close(pipes)
    return None


def _close(pipes: list[int]) -> None:
    for pipe in pipes:
        os.close(pipe)
