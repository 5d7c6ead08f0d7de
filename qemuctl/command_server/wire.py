"""What a client and a server say to each other.

The client sends a request behind its length when it has been greeted; its descriptors
(SCM_RIGHTS, unix(7)), which a server that is stopped would hold open, come with the
length: the working directory first, then those that the command has.
Arguments and environment are bytes without NUL (execve(2)), which separates them.

What the server says is a series of records, a letter and a number: `HELLO`, `READY`
with the worker's pid, then at its end `STATUS` with the wait status. In between the
client sends `GO`, which begins the command, then a byte for each signal that it has
received. `BECOME`, with the length of what follows, is a program that takes the
client's place.
"""

from __future__ import annotations

import struct
from _socket import SCM_RIGHTS, SOL_SOCKET

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterable, Sequence

LENGTH = struct.Struct("!I")
RECORD = struct.Struct("!ci")
HELLO, READY, STATUS, BECOME = b"h", b"r", b"s", b"b"
GO = 0
# Arguments and environment together are at most 6 MiB (execve(2)).
LONGEST = 8 * 1024 * 1024
# The kernel's own bound of a message (SCM_MAX_FD).
MOST_DESCRIPTORS = 253
_PART = 1024 * 1024


def send(
    connection: socket,
    argv: Sequence[bytes],
    env: Iterable[bytes],
    *,
    identity: str,
    umask: int,
    ignored: Iterable[int],
    numbers: Sequence[int],
    encodings: Sequence[str],
    fds: Sequence[int],
) -> None:
    """Sends a request; ``env`` is NAME=VALUE. The meaning of the others is that of
    `request.Request`; ``fds`` are the folder and those that get the ``numbers``.

    Raises:
        OSError: the server is gone, or takes nothing.
    """
    lists = (numbers, ignored, (umask, len(argv)))
    words = [" ".join(map(str, one)).encode() for one in lists]
    payload = b"\0".join(
        [identity.encode("utf-8", "surrogateescape"), " ".join(encodings).encode(),
         *words, *argv, *env]
    )  # fmt: skip
    rights = struct.pack(f"{len(fds)}i", *fds)
    head = LENGTH.pack(len(payload))
    connection.sendmsg([head], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    connection.sendall(payload)


def expect(connection: socket, letter: bytes) -> int:
    """The number of the next record, which has this letter.

    Raises:
        EOFError: the server is gone.
        OSError: it says nothing.
        ValueError: it says something else.
    """
    said, number = receive(connection)
    if said != letter:
        raise ValueError(said)
    return number


def receive(connection: socket) -> tuple[bytes, int]:
    """The next record from the server.

    Raises:
        EOFError: the server is gone.
        OSError: it says nothing.
    """
    letter, number = RECORD.unpack(exactly(connection, RECORD.size))
    return letter, number


def exactly(connection: socket, length: int) -> bytes:
    """So many bytes. Raises EOFError, OSError."""
    parts = []
    while length:
        part = connection.recv(min(length, _PART))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
