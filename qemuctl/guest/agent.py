"""The QEMU guest agent, over its unix socket.

The protocol is QMP's, without greeting and events, over a pipe that has no
notion of a session: what the agent answered to somebody who gave up is still
in it. So every connection begins with guest-sync-delimited, which tells where
the old replies end, and a request that timed out ends its connection.

QEMU serves one client a socket; others wait in its queue. The connection is
therefore let go when it has been idle for a while.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from qemuctl.errors import AgentError, AgentRefused, WaitTimeout
from qemuctl.peers import Lines, json_object
from qemuctl.structs import Struct
from qemuctl.waiting import waiting_for

REQUEST_TIMEOUT = 10.0
# Idle seconds after which the next one in the queue may have the agent.
LINGER = 1.0
# guest-exec has no event for the end of a command, so its status is asked
# for: soon at first, then at this interval in seconds, and after a second so
# rarely that the agent is let go of in between. Hardly a command ends in less than
# the first, and an emulated guest works for each answer instead of for the command.
_POLL_FIRST, _POLL_MOST, _POLL_SLOW = 0.004, 0.05, 0.2
# The longest replies in bytes: what guests tell of themselves; and one that holds
# guest-exec's whole output, twice 16 MiB in base64.
_REPLY = 2 * 1024 * 1024
_OUTPUT = 48 * 1024 * 1024
_SILENT = "the guest agent, which does not answer: the guest is paused, or hangs"


class Result(Struct, kw_only=False):
    """How a command in the guest ended.

    ``status`` is its exit status, or None when ``signal`` ended it.
    ``truncated`` tells that the agent did not keep all of the output.
    """

    argv: tuple[str, ...]
    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @classmethod
    def of(cls, argv: Sequence[str], status: Mapping[str, Any]) -> Self:
        """The end of a command as guest-exec-status's last reply tells it."""
        with makes_sense("guest-exec-status"):
            code, number = status.get("exitcode"), status.get("signal")
            if code is None and number is None:
                raise ValueError("neither a status nor a signal")
            cut = status.get("out-truncated") or status.get("err-truncated")
            return cls(
                argv=tuple(argv),
                status=None if code is None else int(code),
                signal=None if number is None else int(number),
                stdout=base64.b64decode(status.get("out-data", "")),
                stderr=base64.b64decode(status.get("err-data", "")),
                truncated=bool(cut),
            )

    @property
    def ok(self) -> bool:
        """Whether it ended with status 0."""
        return self.status == 0

    @property
    def text(self) -> str:
        """Its standard output as text, without the last line's end."""
        return self.stdout.decode(errors="replace").removesuffix("\n")

    @property
    def exit_status(self) -> int:
        """The status as a shell counts it: 128 and the number for a signal."""
        return self.status if self.status is not None else 128 + (self.signal or 0)


@contextlib.contextmanager
def makes_sense(name: str) -> Iterator[None]:
    """Raises AgentError where a reply to ``name`` has not the shape it should
    have: the agent is the guest's, and may send anything."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise AgentError(f"the guest agent's reply to {name} makes no sense") from error


def _longest(request: Mapping[str, Any]) -> int:
    """Bytes that the reply to a request may have."""
    if request["execute"] == "guest-exec-status":
        return _OUTPUT
    # guest-file-read's part of a file, in base64.
    return _REPLY + 2 * int(request.get("arguments", {}).get("count", 0))


class Agent:
    """The agent of one guest. Requests of one process go one after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._lines: Lines | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._synced = False
        self._idle: asyncio.TimerHandle | None = None

    async def request(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = REQUEST_TIMEOUT,
    ) -> Any:
        """Sends one agent command and gives its return value.

        Raises AgentRefused with the agent's own words, AgentError when what
        comes is not an answer or the channel breaks, WaitTimeout when nothing
        comes in ``timeout`` seconds.
        """
        async with self._lock:
            self._hold()
            try:
                async with asyncio.timeout(timeout):
                    await self._open()
                    reply = await self._exchange({"execute": name}, arguments)
            except TimeoutError as error:
                self.release()
                stage = f"the guest agent's reply to {name}"
                raise WaitTimeout(stage, timeout or 0) from error
            except BaseException:
                self.release()
                raise
            self._idle = asyncio.get_running_loop().call_later(LINGER, self.release)
        if "error" in reply:
            raise AgentRefused(
                f"the guest agent refused {name}: {reply['error'].get('desc')}"
            )
        return reply["return"]

    def _hold(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def release(self) -> None:
        """Closes the connection, so that the next in the queue gets the agent."""
        self._hold()
        if self._writer is not None:
            self._writer.close()
        self._lines = self._writer = None

    def let_go(self) -> None:
        """Closes the connection now, and not after a while, unless a request is
        under way: for those who ask again and again."""
        if not self._lock.locked():
            self.release()

    async def connect(self) -> None:
        """Connects without asking for an answer, for a guest that is about to run.

        Where nobody is connected, the agent looks for it ten times a second only
        (qga/main.c); one that finds somebody there answers at once. Raises
        AgentError.
        """
        async with self._lock:
            self._hold()
            await self._connect()

    async def _open(self) -> None:
        await self._connect()
        if not self._synced:
            await self._sync()
            self._synced = True

    async def _connect(self) -> None:
        if self._writer is not None:
            return
        self._synced = False
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
            self._lines = Lines(reader)
        except OSError as error:
            raise AgentError(
                f"no guest agent socket at {self._path}: {error.strerror}"
            ) from error

    async def _sync(self) -> None:
        """Skips whatever is left of earlier conversations."""
        assert self._writer is not None
        # Not counted on from a number of this process: processes that were forked from
        # one share it, and the reply to another one's request may still be on its way.
        number = int.from_bytes(os.urandom(6))
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._writer.write(b"\xff" + json.dumps(request).encode() + b"\n")
        while True:
            line = await self._line(_REPLY, end_only=True)
            _, delimiter, rest = line.rpartition(b"\xff")
            if delimiter:
                with contextlib.suppress(ValueError):
                    if json_object(rest).get("return") == number:
                        return

    async def _line(self, most: int, *, end_only: bool = False) -> bytes:
        assert self._lines is not None
        try:
            line = await self._lines.next(most, end_only=end_only)
        except (ValueError, OSError) as error:
            raise AgentError(f"the guest agent's channel broke: {error}") from error
        if not line.endswith(b"\n"):
            raise AgentError("the guest agent's channel closed")
        return line

    async def _exchange(
        self, request: dict[str, Any], arguments: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        assert self._writer is not None
        if arguments:
            request["arguments"] = arguments
        try:
            self._writer.write(json.dumps(request).encode() + b"\n")
            await self._writer.drain()
        except OSError as error:
            raise AgentError(f"the guest agent's channel broke: {error}") from error
        line = await self._line(_longest(request))
        with contextlib.suppress(ValueError):
            reply = json_object(line)
            if isinstance(reply.get("error"), dict) or (
                "return" in reply and "error" not in reply
            ):
                return reply
        raise AgentError(f"the guest agent sent nonsense: {line[:60]!r}")

    async def ping(self, *, timeout: float | None = REQUEST_TIMEOUT) -> None:
        """Returns when the agent answers guest-ping; raises as `request` does."""
        await self.request("guest-ping", timeout=timeout)

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Runs a command in the guest and waits for its end (guest-exec).

        ``argv[0]`` is found on the agent's PATH. The output is kept whole, up
        to the agent's limit of 16 MiB. Raises AgentError when the command
        cannot be started, WaitTimeout when it has not ended in ``timeout``
        seconds; it then goes on in the guest.
        """
        pid = await self.start(argv, input=input, env=env, capture=True)
        try:
            async with asyncio.timeout(timeout):
                status = await self.finished(pid)
        except TimeoutError as error:
            stage = f"the end of {argv[0]!r} in the guest"
            raise WaitTimeout(stage, timeout or 0) from error
        return Result.of(argv, status)

    async def start(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        capture: bool = False,
        timeout: float | None = REQUEST_TIMEOUT,
    ) -> int:
        """Starts a command in the guest and gives its pid there (guest-exec); raises
        as `request` does."""
        arguments: dict[str, Any] = {
            "path": argv[0],
            "arg": list(argv[1:]),
            "capture-output": capture,
        }
        if input is not None:
            arguments["input-data"] = base64.b64encode(input).decode()
        if env is not None:
            arguments["env"] = [f"{name}={value}" for name, value in env.items()]
        reply = await self.request("guest-exec", arguments, timeout=timeout)
        with makes_sense("guest-exec"):
            return int(reply["pid"])

    async def finished(self, pid: int) -> dict[str, Any]:
        """Waits for a command that `start` began; gives guest-exec-status's reply."""
        async for status in self.statuses(pid):
            if status["exited"]:
                return status
        raise AssertionError("unreachable")

    async def statuses(self, pid: int) -> AsyncIterator[dict[str, Any]]:
        """guest-exec-status's replies at sensible intervals, the last one too."""
        started, pause = time.monotonic(), _POLL_FIRST
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_MOST)
            # No limit of its own: a paused guest answers when it goes on.
            with waiting_for(_SILENT, say_after=REQUEST_TIMEOUT):
                status = await self.request(
                    "guest-exec-status", {"pid": pid}, timeout=None
                )
            with makes_sense("guest-exec-status"):
                ended = dict(status)["exited"]
            yield status
            if ended:
                return
            if time.monotonic() - started > 1:
                pause = _POLL_SLOW
                self.release()
