"""Serving the commands of a user, in a process that `control` starts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from qemuctl.command_server.identity import Code, address, identity
from qemuctl.command_server.inherit import inherit
from qemuctl.command_server.request import Request
from qemuctl.command_server.server import Server
from qemuctl.command_server.worker import Program

READY = b"ready\n"


def serve(command: Callable[[], object], load: Callable[[], object]) -> None:
    """Serves ``command`` until SIGTERM, or until its code has changed on disk; ``load``
    is called before. Says on standard output when it is ready, and nothing after it."""
    own, path = identity(), Path(address())

    def admit(request: Request, client: int) -> None:
        if request.identity != own:
            raise ValueError("another installation, or other settings of Python")
        inherit(client)

    code = Code()  # before it is loaded: what changes meanwhile is not
    load()
    server = Server(path, Program(command, admit), stale=code.changed)
    signal.signal(signal.SIGTERM, _end)
    _say_ready()
    try:
        server.serve()
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit


def _say_ready() -> None:
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.close(nowhere)
