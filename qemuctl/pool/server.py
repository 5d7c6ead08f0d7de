"""The process of a shared pool.

It belongs to no terminal, keeps a `Pool`, and answers one packet a connection (see
`qemuctl.templates.pool_client`). Its parked forks die with it, whatever kills it; those
that were handed out belong to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qemuctl.errors import HostError, QemuctlError, StateError
from qemuctl.paths import PoolPaths, made_run_home
from qemuctl.pool.pool import Pool
from qemuctl.pool.tasks import Tasks
from qemuctl.process import Identity, take
from qemuctl.templates.catalog import find
from qemuctl.templates.pool_client import PACKET, PATIENCE

_log = logging.getLogger(__name__)
_BACKLOG = 64
# Without a free descriptor nobody can be answered, and no event tells of one.
_SCARCE_PAUSE = 0.5


def main(arguments: Sequence[str]) -> None:
    """Runs a pool to its end: NAME SIZE. Standard output gets one line of JSON, once
    the first fork is parked or it is clear that none will be."""
    name, size = arguments
    _log_to_stderr()
    try:
        asyncio.run(_until_ended(_serve(name, int(size))))
    except (QemuctlError, OSError) as error:
        _log.error("ended: %s", error)
        hint = error.hint if isinstance(error, QemuctlError) else None
        with contextlib.suppress(OSError):  # who started it may have gone
            _tell({"error": str(error), "hint": hint})
        raise SystemExit(1) from None
    except asyncio.CancelledError:
        _log.info("ended")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    own = logging.getLogger("qemuctl")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False


async def _until_ended(work: Coroutine[Any, Any, None]) -> None:
    """Does the work; the signals that ask for an end cancel it."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await work


async def _serve(name: str, size: int) -> None:
    paths = PoolPaths(name)
    with _alone(paths):
        async with Pool(find(name), size) as pool:
            await pool.ready()
            with _listening(paths.socket) as listener:
                # Whoever started it and has gone would never know of it.
                _tell({"ready": True})
                _log.info("ready: %d forks of %s", size, name)
                await _Desk(pool).serve(listener)


def _tell(word: dict[str, Any]) -> None:
    """The one line on standard output, which is closed then."""
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


@contextlib.contextmanager
def _alone(paths: PoolPaths) -> Iterator[None]:
    """Holds the lock of the template's pool, which says whose it is."""
    lock = take(paths.lock)
    if lock is None:
        raise StateError(
            f"start a pool of {paths.name}", "running", "there is one already"
        )
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(asdict(_self())).encode(), 0)
        yield
    finally:
        os.close(lock)


def _self() -> Identity:
    own = Identity.of(os.getpid())
    assert own is not None
    return own


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """The socket, of which there is no other owner: we have the lock."""
    made_run_home()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise HostError(
                f"cannot listen on {path}: {error.strerror or error}"
            ) from error
        listener.setblocking(False)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class _Desk:
    """Answers whoever comes, one task each."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tasks = Tasks()

    async def serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    _log.warning("cannot answer: %s", error)
                    await asyncio.sleep(_SCARCE_PAUSE)
                else:
                    self._tasks.begin(self._answer(connection))
        finally:
            await self._tasks.call_off()

    async def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, TimeoutError):
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(PATIENCE):
                request = _parsed(await loop.sock_recv(connection, PACKET))
            if "take" in request:
                await self._hand_out(connection, Path(str(request["take"])))
            else:
                _send(connection, asdict(self._pool.status()))

    async def _hand_out(self, connection: socket.socket, content: Path) -> None:
        """Gives a parked fork away, if there is one."""
        try:
            given = await self._pool.give(content)
        except QemuctlError as error:
            _log.warning("no fork: %s", error.message)
            given = None
        if given is None:
            _send(connection, {})
            return
        try:
            # The owner's monitor serves one client, and that is not us any more.
            await given.vm.close()
            undertaker = asdict(given.undertaker.process)
            word = {"name": given.vm.name, "undertaker": undertaker}
            _send(connection, word, given.pipes)
        finally:
            # Whoever asked for it may have gone: then it has no owner, and dies.
            given.let_go()
            self._tasks.begin(given.reaped())


def _parsed(packet: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(packet)
        if isinstance(value, dict):
            return value
    return {}


def _send(
    connection: socket.socket, word: dict[str, Any], pipes: Sequence[int] = ()
) -> None:
    socket.send_fds(connection, [json.dumps(word).encode()], pipes)
