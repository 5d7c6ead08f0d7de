"""Kills a process at a chosen step of a command.

A step is a process that is started, a file or folder that is made, renamed or
removed, or a QMP command; each counts once, however often it comes. By choice a file or
folder that is synced (fsync(2)) is one, too, and what comes again is a step of its own.
`STEPS` in the environment of a command chooses what is killed, and where.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

_fsync = os.fsync

VARIABLE = "QEMUCTL_TEST_STEPS"
# Python tells of these before it does them (sys.addaudithook).
_FILES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
# Parts of names that differ from one run to the next.
_CHANGING = re.compile(r"[0-9a-z_]*[0-9][0-9a-z_]*")


@dataclass(frozen=True)
class Cut:
    """``whom`` is killed when the step ``at`` begins for the first time: the `command`,
    the `qemu` of its home, or the first `receiver` of its migration, whose steps are
    those that count then. ``log`` gets the names of all that begin; with ``syncs``
    these are among them, and where a step comes again it is called `STEP (2)`.
    """

    log: str
    at: str = ""
    whom: str = "command"
    syncs: bool = False

    @property
    def env(self) -> dict[str, str]:
        env = {VARIABLE: json.dumps(asdict(self))}
        if self.whom == "receiver":  # a Python that the command starts
            tests = Path(__file__).parent
            env["PYTHONPATH"] = f"{tests.parent}:{tests / 'watched'}"
        return env

    def names(self) -> list[str]:
        """The steps that the command has begun."""
        return Path(self.log).read_text().splitlines()


def install() -> None:
    """Watches the steps of this process, if its environment says so."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return
    cut = Cut(**json.loads(text))
    if cut.whom == "receiver":
        Path(cut.log).unlink(missing_ok=True)
        os.environ |= replace(cut, whom="first receiver").env
    elif cut.whom != "first receiver" or not Path(cut.log).exists():
        _Steps(cut).watch()


class _Steps:
    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._seen: Counter[str] = Counter()
        self._log = os.open(cut.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def watch(self) -> None:
        from qemuctl.qmp.session import Session

        command = Session.command

        async def told(session: Session, name: str, *args: Any, **options: Any) -> Any:
            self._step(f"qmp {name}")
            return await command(session, name, *args, **options)

        Session.command = told  # type: ignore[method-assign]
        if self._cut.syncs:
            os.fsync = self._sync
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

    def _sync(self, fd: int) -> None:
        # No audit event tells of it.
        self._step(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        _fsync(fd)

    def _step(self, name: str) -> None:
        name = _CHANGING.sub("*", name)
        self._seen[name] += 1
        if self._seen[name] > 1:
            if not self._cut.syncs:
                return
            name = f"{name} ({self._seen[name]})"
        os.write(self._log, f"{name}\n".encode())
        if name == self._cut.at:
            for pid in _qemus() if self._cut.whom == "qemu" else [os.getpid()]:
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
