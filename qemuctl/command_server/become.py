"""Letting another program take the place of this command (execve(2))."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from qemuctl.command_server import wire

client: int | None = None
"""The descriptor of the connection to its client, in a worker."""


def become(argv: Sequence[str]) -> NoReturn:
    """Runs a program, found on PATH, instead of this process.

    A worker hands it to its client, which has the terminal for its own: a program such
    as ssh(1) asks there, and is stopped and continued by its keys.

    Raises:
        OSError: it cannot be run; FileNotFoundError: there is none.
    """
    if client is None:
        # Python ignores it, and ignored signals stay so across exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvp(argv[0], [*argv])
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(argv[0])
    words = b"\0".join(map(os.fsencode, [os.path.abspath(program), *argv]))  # noqa: PTH100
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with socket.socket(fileno=client) as connection:
        connection.sendall(wire.RECORD.pack(wire.BECOME, len(words)) + words)
    os._exit(0)
