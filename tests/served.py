"""A command server of a user, and programs that are its clients.

The command is Python, the program's first argument; it is run here when no server can.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qemuctl.command_server import control, identity

_COMMAND = """
import sys
def command():
    exec(sys.argv[1], {"__name__": "command"})
"""
SERVE = f"""{_COMMAND}
from qemuctl.command_server.user import serve
serve(command, lambda: None)
"""
# However busy the machine is, a server that serves is waited for.
_CLIENT = f"""{_COMMAND}
import os
from qemuctl.command_server import client
if "HASTY" not in os.environ:
    client._PATIENCE = 60
client.run()
command()
"""
# The only difference that a command may find.
WHO = (
    "import sys; who = 'served' if 'qemuctl.command_server.worker' in sys.modules"
    " else 'cold'; print(who, flush=True)\n"
)
HASTY = {"HASTY": ""}  # the environment of a client as users have it
ON = WHO + "import signal; signal.pause()"
PATIENCE = 60.0


class Served:
    """A folder for sockets, and the server there."""

    def __init__(self, folder: Path) -> None:
        self.env = {k: v for k, v in os.environ.items() if k != "QEMUCTL_SERVER"}
        self.env |= {"XDG_RUNTIME_DIR": str(folder)}

    @contextlib.contextmanager
    def _in_force(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", self.env["XDG_RUNTIME_DIR"])
            yield

    @property
    def socket(self) -> Path:
        with self._in_force():
            return Path(identity.address())

    def start(self, program: str = SERVE) -> psutil.Process:
        with self._in_force():
            return psutil.Process(control.start(program)[0])

    def running(self) -> int | None:
        with self._in_force():
            return control.running()

    def answers(self) -> bool:
        with self._in_force():
            return control.answers()

    def stop(self) -> bool:
        with self._in_force():
            return control.stop()

    def popen(
        self, code: str, *words: str, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | options
        return subprocess.Popen(
            [*options.pop("before", ()), *self.argv(code, *words)],
            env=self.env | (env or {}), text=True, **options,
        )  # fmt: skip

    @staticmethod
    def argv(code: str, *words: str) -> list[str]:
        return [sys.executable, "-c", _CLIENT, code, *words]

    def run(self, code: str, *words: str, **options: Any) -> tuple[str, int]:
        """What it says, and its status."""
        with self.popen(code, *words, **options) as process:
            said, _ = process.communicate(timeout=PATIENCE)
        return said, process.returncode


@contextlib.contextmanager
def served(program: str = SERVE) -> Iterator[Served]:
    # A short name: that of a socket is at most 107 bytes long.
    folder = Path(tempfile.mkdtemp(prefix="qemuctl-s-"))
    made = Served(folder)
    try:
        made.start(program)
        yield made
    finally:
        pid = made.running()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        made.stop()
        shutil.rmtree(folder)
