"""A request as the worker reads it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from qemuctl.command_server import wire


@dataclass(frozen=True)
class Request:
    """A command as its client would start it.

    ``encodings`` are those of Python's standard streams, CODEC:ERRORS:UNBUFFERED;
    ``numbers`` tells which descriptors are open, ``ignored`` which signals are ignored
    (nohup(1)).
    """

    identity: str
    encodings: list[str]
    numbers: list[int]
    ignored: list[int]
    umask: int
    argv: list[bytes]
    env: dict[bytes, bytes]


def receive(connection: socket.socket) -> tuple[Request, list[int]]:
    """The request of a client, and the descriptors that came with it.

    Raises:
        EOFError: the client has gone, or it is no client.
        OSError: it sends nothing.
        ValueError: it sends something else.
    """
    size = socket.CMSG_LEN(struct.calcsize(f"{wire.MOST_DESCRIPTORS}i"))
    head, parts, _, _ = connection.recvmsg(wire.LENGTH.size, size)
    fds = [
        fd
        for level, kind, data in parts
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("i", data)
    ]
    if len(head) < wire.LENGTH.size:
        raise EOFError
    (length,) = wire.LENGTH.unpack(head)
    if not 0 < length < wire.LONGEST:
        raise EOFError
    request = _parsed(wire.exactly(connection, length))
    if len(fds) != 1 + len(request.numbers):
        raise ValueError("other descriptors than it says")
    return request, fds


def _parsed(payload: bytes) -> Request:
    """Raises ValueError."""
    identity, encodings, numbers, ignored, counts, *words = payload.split(b"\0")
    umask, argc = _integers(counts)
    pairs = (word.partition(b"=") for word in words[argc:])
    return Request(
        identity=identity.decode("utf-8", "surrogateescape"),
        encodings=encodings.decode().split(),
        numbers=_integers(numbers),
        ignored=_integers(ignored),
        umask=umask,
        argv=words[:argc],
        env={name: value for name, _, value in pairs},
    )


def _integers(text: bytes) -> list[int]:
    return [int(word) for word in text.split()]
