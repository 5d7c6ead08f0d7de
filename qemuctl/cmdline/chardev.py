"""Character devices: the host's end of monitors, serial ports and channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from qemuctl.cmdline.keyval import KeyvalOption


class SocketChardev(KeyvalOption):
    """A listening unix socket, by ``path`` or as an inherited descriptor ``fd``."""

    OPTION: ClassVar = "-chardev"
    HEAD: ClassVar = "backend"
    backend: str = "socket"
    id: str
    path: Path | None = None
    fd: int | None = None
    server: bool = True
    wait: bool = False
    logfile: Path | None = None
    logappend: bool | None = None

    def inherited(self, fd: int) -> SocketChardev:
        """The same chardev on a socket that listens already, as ``fd``."""
        return replace(self, path=None, fd=fd)


class PipeChardev(KeyvalOption):
    """Reads ``PATH.in`` and writes ``PATH.out``."""

    OPTION: ClassVar = "-chardev"
    HEAD: ClassVar = "backend"
    backend: str = "pipe"
    id: str
    path: Path
