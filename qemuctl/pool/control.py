"""Starting, asking and ending the shared pool of a template."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from qemuctl.descriptors import readable
from qemuctl.errors import QemuctlError, StateError
from qemuctl.paths import PoolPaths, pools_dir, private_dir
from qemuctl.pool.status import Status
from qemuctl.process import Identity, held, wait_gone
from qemuctl.registry.template import Template
from qemuctl.tail import tail
from qemuctl.templates.pool_client import ask

# A pool ends its parked forks side by side; each has some seconds for that.
_END_PATIENCE = 15.0
# Not `-m`: that would look for modules in the current folder first.
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from qemuctl.pool.server import main
main(sys.argv[2:])
"""


def running() -> list[str]:
    """The templates that have a shared pool, by name."""
    return sorted(
        path.stem
        for path in pools_dir().glob("*.lock")
        if held(PoolPaths(path.stem).lock)
    )


async def status(name: str) -> Status | None:
    """How a template's pool is doing; None when there is none, or it is just
    starting or ending. Raises StateError for one that does not answer."""
    paths = PoolPaths(name)
    answer = await ask(paths.socket, {"status": True})
    if answer is not None:
        with contextlib.suppress(TypeError):
            return Status(**answer[0])
    if held(paths.lock) and paths.socket.exists():
        raise StateError(
            f"ask the pool of {name}",
            "unresponsive",
            "it does not answer",
            hint=f"qemuctl pool stop {name}",
        )
    return None


async def start(template: Template, size: int) -> None:
    """Starts the pool of a template that has a name, in a process of its own;
    returns when its first fork is parked.

    Raises StateError when there is one already, and what keeps a fork from being
    started; there is no pool then.
    """
    private_dir(pools_dir())
    with PoolPaths(template.name).log.open("ab") as log:
        root = Path(__file__).parents[2]
        argv = ["-P", "-c", _PROGRAM, str(root), template.name, str(size)]
        process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with process.stdout as stdout:
            await readable(stdout.fileno())
            word = stdout.readline()
        _check(word, template.name)
    except BaseException:
        process.terminate()
        await asyncio.shield(_reaped(process))
        raise
    # A long-lived caller would otherwise keep it as a zombie after its end.
    threading.Thread(target=process.wait, daemon=True).start()


def _check(word: bytes, name: str) -> None:
    """Raises what a pool said instead of being ready."""
    reply: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        reply = json.loads(word)
    if "ready" not in reply:
        raise QemuctlError(
            reply.get("error") or f"the pool of {name} ended before it was ready",
            hint=reply.get("hint") or tail(PoolPaths(name).log) or None,
        )


async def _reaped(process: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(process.pid)
    if identity is not None:
        await wait_gone(identity)
    process.wait()


async def stop(name: str) -> bool:
    """Ends the pool of a template and all that are parked; False when there is none.

    SIGTERM, and SIGKILL when that has no effect: then its forks die by themselves.
    """
    paths = PoolPaths(name)
    server = _owner(paths)
    if server is None:
        return False
    server.signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_END_PATIENCE):
            await wait_gone(server)
    except TimeoutError:
        server.signal(signal.SIGKILL)
        await wait_gone(server)
        paths.socket.unlink(missing_ok=True)
    return True


def _owner(paths: PoolPaths) -> Identity | None:
    """The process of a pool, as its lock tells."""
    if not held(paths.lock):
        return None
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Identity(**json.loads(paths.lock.read_text()))
    return None
