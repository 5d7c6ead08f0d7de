"""What the tests of saved guests do to them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from qemuctl.registry.saved_state import START
from tests.guest.conftest import Home

# The command line, with something done in the moment in which it sends a command.
CUT = """
import asyncio, os, signal, sys
from qemuctl.qmp.session import Session

how, at, late, qemu, *words = sys.argv[1:]
real = Session.command

def cut():
    if how == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
    elif how == "killed":
        os._exit(9)
    elif how == "stopped":
        os.kill(int(qemu), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGINT)
    else:
        os.kill(int(qemu), signal.SIGKILL)

async def command(self, name, *arguments, **options):
    if name == at and float(late) == 0:
        cut()
    elif name == at:
        asyncio.get_running_loop().call_later(float(late), cut)
    return await real(self, name, *arguments, **options)

Session.command = command
sys.argv = ["qemuctl", *words]
from qemuctl.cli.main import main
main()
"""


def row(home: Home, vm: str) -> dict[str, Any]:
    every = json.loads(home.text("ls", "-a", "--json"))
    return next(dict(row) for row in every if row["name"] == vm)


def cut(
    home: Home, how: str, at: str, *words: object, late: float = 0.0
) -> tuple[int, str]:
    """Runs a command line that is cut short when it sends the QMP command ``at``, or
    ``late`` seconds after that; gives its status and what it said."""
    pid = row(home, "web")["pid"] or 0
    done = subprocess.run(
        [sys.executable, "-c", CUT, how, at, str(late), str(pid), *map(str, words)],
        env=home.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=90,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def begun(folder: Path) -> list[str]:
    """Files that were not finished."""
    return [path.name for path in folder.glob(".qemuctl-*")]


def forge(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Writes another head, with a checksum that is right."""
    content = path.read_bytes()
    line, _, rest = content.partition(b"\n")
    about = change(json.loads(rest[: int(line.split()[3])]))
    text = json.dumps(about).encode()
    sum_ = hashlib.sha256(text).hexdigest()
    head = b"qemuctl state 1 %d %s\n%s" % (len(text), sum_.encode(), text)
    with path.open("r+b") as file:
        file.write(head.ljust(START, b"\0"))


def says(path: Path, **change: object) -> None:
    """Has the spec in the head of a saved state say something else."""

    def changed(about: dict[str, Any]) -> dict[str, Any]:
        spec = yaml.safe_load(about["spec"]) | change
        return about | {"spec": yaml.safe_dump(spec)}

    forge(path, changed)


def flip(path: Path, place: int) -> None:
    """Changes one byte."""
    with path.open("r+b") as file:
        was = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([was[0] ^ 255]), place)


def saved(home: Home) -> Path:
    return home.path / "state/vms/web/saved.state"
