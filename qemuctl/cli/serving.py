"""The command line as a command server."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType

import qemuctl
from qemuctl.cli.app import build_all
from qemuctl.cli.main import main
from qemuctl.command_server.control import READY
from qemuctl.command_server.identity import Code, address, identity
from qemuctl.command_server.inherit import inherit
from qemuctl.command_server.request import Request
from qemuctl.command_server.server import Server
from qemuctl.command_server.worker import Program

_NOT_OURS = ("qemuctl.__main__", "qemuctl.pytest_plugin", "qemuctl.testing", __name__)
# What modules load inside of functions, so that a cold command need not.
_LATER = (
    "asyncio", "concurrent.futures", "hashlib", "httpx", "importlib.metadata",
    "pycdlib", "pydantic.json_schema", "rich.live", "rich.progress", "rich.table",
    "tarfile", "yaml", "zstandard",
)  # fmt: skip


def preload() -> None:
    """Loads and builds everything that a command may need."""
    for module in pkgutil.walk_packages(qemuctl.__path__, "qemuctl."):
        if not module.name.startswith(_NOT_OURS):
            import_module(module.name)
    for name in _LATER:
        import_module(name)
    build_all()


def serve_user() -> None:
    """Serves the commands of this user until SIGTERM, or until its code has changed on
    disk. Says on standard output when it is ready, and nothing after it."""
    own, path = identity(), Path(address())

    def admit(request: Request, client: int) -> None:
        if request.identity != own:
            raise ValueError("another installation, or other settings of Python")
        inherit(client)

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SystemExit

    code = Code()  # before it is loaded: what changes meanwhile is not
    preload()
    server = Server(path, Program(main, admit), stale=code.changed)
    signal.signal(signal.SIGTERM, end)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.close(nowhere)
    try:
        server.serve()
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
