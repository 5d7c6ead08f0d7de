"""What a client and its worker say: one request with descriptors, then two numbers.

The request is JSON behind its length; its descriptors (SCM_RIGHTS, unix(7)) come
with the length: the working directory first, then the open ones of 0, 1 and 2. The
server answers with the worker's pid and, at its end, with its wait status.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict

from qemuctl.structs import Struct

NUMBER = struct.Struct("!i")
# Arguments and environment together are at most 6 MiB (execve(2)); escaped, more.
_LONGEST = 64 * 1024 * 1024
_DESCRIPTORS = 4


class Request(Struct, kw_only=False):
    """A command as its client would start it.

    ``streams`` tells which of the descriptors 0 to 2 are open, ``ignored`` which
    signals are ignored (nohup(1)).
    """

    argv: list[str]
    env: dict[str, str]
    umask: int
    streams: list[int]
    ignored: list[int]


def send(connection: socket.socket, request: Request, fds: Sequence[int]) -> None:
    """Sends a request with its descriptors.

    Raises:
        OSError: the server is gone.
    """
    # A lone surrogate stands for a byte that is no UTF-8 (os.fsdecode); JSON's
    # escapes carry it.
    payload = json.dumps(asdict(request)).encode()
    socket.send_fds(connection, [NUMBER.pack(len(payload))], fds)
    connection.sendall(payload)


def receive(connection: socket.socket) -> tuple[Request, list[int]]:
    """The request of a client, and the descriptors that came with it.

    Raises:
        EOFError: the client has gone, or it is no client.
        OSError: it sends nothing.
        TypeError, ValueError: it sends something else.
    """
    head, fds, _, _ = socket.recv_fds(connection, NUMBER.size, _DESCRIPTORS)
    if len(head) < NUMBER.size:
        raise EOFError
    (length,) = NUMBER.unpack(head)
    if not 0 < length < _LONGEST:
        raise EOFError
    return Request(**json.loads(_exactly(connection, length))), fds


def number(connection: socket.socket) -> int:
    """The next number from the server.

    Raises:
        EOFError: the server is gone.
        OSError: it says nothing.
    """
    return int(NUMBER.unpack(_exactly(connection, NUMBER.size))[0])


def _exactly(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(min(length, 1024 * 1024))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
