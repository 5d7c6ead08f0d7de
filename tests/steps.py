"""Kills a process at a chosen step of a command.

A step is a process that is started, a file or folder that is made, renamed or
removed, or a QMP command; each counts once, however often it comes. `STEPS` in the
environment of a command chooses what is killed, and where.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

VARIABLE = "QEMUCTL_TEST_STEPS"
# Python tells of these before it does them (sys.addaudithook).
_FILES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
# Parts of names that differ from one run to the next.
_CHANGING = re.compile(r"[0-9a-z_]*[0-9][0-9a-z_]*")


@dataclass(frozen=True)
class Cut:
    """``whom`` (`command`, or the `qemu` of its home) is killed when the step ``at``
    begins for the first time. ``log`` gets the names of all that begin."""

    log: str
    at: str = ""
    whom: str = "command"

    @property
    def env(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    def names(self) -> list[str]:
        """The steps that the command has begun."""
        return Path(self.log).read_text().splitlines()


def install() -> None:
    """Watches the steps of this process, if its environment says so."""
    text = os.environ.pop(VARIABLE, None)
    if text is not None:
        _Steps(Cut(**json.loads(text))).watch()


class _Steps:
    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._seen: set[str] = set()
        self._log = os.open(cut.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def watch(self) -> None:
        from qemuctl.qmp.session import Session

        command = Session.command

        async def told(session: Session, name: str, *args: Any, **options: Any) -> Any:
            self._step(f"qmp {name}")
            return await command(session, name, *args, **options)

        Session.command = told  # type: ignore[method-assign]
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _FILES:
            path = args[1] if event in ("os.rename", "os.link") else args[0]
            self._step(f"{event.removeprefix('os.')} {_base(path)}")
        elif event == "subprocess.Popen":
            programs = [_base(word) for word in args[1][:2]]
            self._step(f"start {' '.join(programs)}")
        elif event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT:
            self._step(f"make {_base(args[0])}")

    def _step(self, name: str) -> None:
        name = _CHANGING.sub("*", name)
        if name in self._seen:
            return
        self._seen.add(name)
        os.write(self._log, f"{name}\n".encode())
        if name == self._cut.at:
            command = self._cut.whom == "command"
            for pid in [os.getpid()] if command else _qemus():
                os.kill(pid, signal.SIGKILL)


def _qemus() -> Iterator[int]:
    """The QEMUs that were started with this process's home."""
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            qemu = process.info["name"].startswith("qemu-system")
            if qemu and process.environ().get("QEMUCTL_HOME") == _home():
                yield process.pid


def _home() -> str:
    return os.environ["QEMUCTL_HOME"]


def _base(path: Any) -> str:
    """The last part of a path; of a descriptor nothing."""
    named = isinstance(path, str | bytes | os.PathLike)
    return Path(os.fsdecode(path)).name if named else "-"
