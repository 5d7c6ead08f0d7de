"""One QMP connection: commands, events, and the truth about its end.

QEMU serves one client a monitor. Another one that connects waits in the
socket's queue, and its greeting comes when its turn has come; so a greeting
that does not come in time means a stuck QEMU or a long queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from qemu.qmp import (
    ConnectError,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
)
from qemu.qmp.events import EventListener
from qemu.qmp.message import Message
from qemu.qmp.protocol import Runstate
from qemu.qmp.protocol import StateError as ProtocolStateError

from qemuctl.errors import CommandError, MonitorLost, QmpError, WaitTimeout
from qemuctl.qmp.commands import Command, R
from qemuctl.qmp.events import Event
from qemuctl.qmp.recorder import Recorder

# The library logs each lost connection as an error; we raise it instead.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

COMMAND_TIMEOUT = 30.0
CONNECT_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 1.0


class Subscription:
    """The events of some names from the moment it was made, in order."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def offer(self, event: Event | None) -> None:
        """Takes an event that it wants; None ends it."""
        if event is None or not self._names or event.name in self._names:
            self._queue.put_nowait(event)

    async def get(self) -> Event:
        """The next event. Raises MonitorLost when there will be none."""
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)
            raise MonitorLost("the connection to QEMU's monitor ended")
        return event

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Every event until the connection ends."""
        with contextlib.suppress(MonitorLost):
            while True:
                yield await self.get()


class _Dispatcher(EventListener):
    """Hands events on at once; the library's own queue and history stay empty,
    for they would grow for as long as the VM lives."""

    def __init__(self) -> None:
        super().__init__()
        self.subscriptions: set[Subscription] = set()

    def accept(self, event: Message) -> bool:
        parsed = Event.parse(dict(event))
        if parsed is not None:
            for subscription in self.subscriptions:
                subscription.offer(parsed)
        return False


class Session:
    """A negotiated connection to one monitor."""

    def __init__(self, client: QMPClient, recorder: Recorder | None) -> None:
        self._client = client
        self._recorder = recorder
        self._dispatcher = _Dispatcher()
        client.register_listener(self._dispatcher)
        client.events.event_filter = lambda _event: False
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        path: Path,
        *,
        recorder: Recorder | None = None,
        timeout: float | None = CONNECT_TIMEOUT,
    ) -> Session:
        """Connects, waits for the greeting, and negotiates.

        Raises WaitTimeout when no greeting comes, QmpError when nobody
        listens or the other side is not QMP.
        """
        client = QMPClient(path.name)
        session = cls(client, recorder)
        try:
            async with asyncio.timeout(timeout):
                await client.connect(str(path))
        except BaseException as error:
            await session.close()
            if isinstance(error, TimeoutError):
                raise WaitTimeout("QEMU's QMP greeting", timeout or 0) from error
            # The library asserts that the other side has not yet hung up.
            if isinstance(error, (ConnectError, AssertionError)):
                reason = str(getattr(error, "exc", "")) or "it hung up"
                raise QmpError(f"no QMP at {path}: {reason}") from error
            raise
        session._watch = asyncio.create_task(session._until_lost())
        return session

    async def _until_lost(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        for subscription in self._dispatcher.subscriptions:
            subscription.offer(None)

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._client.runstate != Runstate.RUNNING)

    async def ended(self) -> None:
        """Waits for the connection's end, whatever caused it."""
        if self._watch is not None:
            await asyncio.shield(self._watch)

    async def execute(
        self,
        command: Command[R],
        *,
        timeout: float | None = COMMAND_TIMEOUT,
        private: bool = False,
    ) -> R:
        """Sends a typed command; as `command`, and raises as it does."""
        name, arguments = command.NAME, command.arguments()
        return command.reply(
            await self.command(name, arguments, timeout=timeout, private=private)
        )

    async def command(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout: float | None = COMMAND_TIMEOUT,
        private: bool = False,
    ) -> Any:
        """Sends any QMP command and gives its return value.

        The arguments of a ``private`` one are not written down.
        Raises CommandError with QEMU's own class and words, WaitTimeout when
        no reply comes in ``timeout`` seconds (a later one is dropped, never
        taken for another's), and MonitorLost when the connection ends first:
        then nobody knows whether the command was carried out.
        """
        if self._recorder:
            self._recorder.command(name, "…" if private else arguments)
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                value = await self._client.execute(name, arguments or None)
        except BaseException as error:
            translated = _translate(name, error, timeout)
            if self._recorder:
                self._recorder.failure(name, str(translated or type(error).__name__))
            if translated is None:
                raise
            raise translated from error
        if self._recorder:
            self._recorder.reply(name, value, time.monotonic() - started)
        return value

    async def send_fd(self, fd: int) -> None:
        """Hands QEMU a copy of a descriptor, which the next command names (getfd)."""
        self._client.send_fd_scm(fd)

    async def execute_each(
        self, commands: Iterable[Command[R]]
    ) -> list[R | CommandError]:
        """The replies to some commands, in their order; all are sent at once, for a
        round trip takes longer than an answer.

        One that was refused has its CommandError in its place. Raises else as
        `command` does.
        """
        sent = [asyncio.ensure_future(self.execute(each)) for each in commands]
        try:
            if sent:
                await asyncio.wait(sent)
            return [_reply(each) for each in sent]
        finally:
            for each in sent:
                each.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[Subscription]:
        """Subscribes to events of these names (none: all) for the block.

        Make the subscription first and send the command after it: an event
        may come before the command's reply.
        """
        subscription = Subscription(frozenset(names))
        self._dispatcher.subscriptions.add(subscription)
        if self.lost:
            subscription.offer(None)
        try:
            yield subscription
        finally:
            self._dispatcher.subscriptions.discard(subscription)

    async def close(self) -> None:
        """Ends the connection; QEMU goes on. Never raises for a broken one, and has
        ended it also when it is cancelled."""
        # Otherwise Python tells, when the program ends, of tasks of the library that
        # nobody has waited for.
        closing = asyncio.ensure_future(self._close())
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _close(self) -> None:
        # Whatever broke the connection before is raised here, of any kind.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._client.disconnect()
        if self._watch is not None:
            await self._watch
        if self._recorder:
            self._recorder.close()


def _reply(sent: asyncio.Task[R]) -> R | CommandError:
    error = sent.exception()
    return error if isinstance(error, CommandError) else sent.result()


def _translate(
    name: str, error: BaseException, timeout: float | None
) -> QmpError | WaitTimeout | None:
    """Our error for the library's; None for what is not ours to wrap."""
    if isinstance(error, ExecuteError):
        info = error.error.error
        return CommandError(name, info.class_, info.desc)
    if isinstance(error, TimeoutError):
        return WaitTimeout(f"QEMU's reply to {name}", timeout or 0)
    if isinstance(error, (ExecInterruptedError, ProtocolStateError, EOFError, OSError)):
        return MonitorLost(f"QEMU's monitor went away during {name}: outcome unknown")
    if isinstance(error, QMPError):
        return QmpError(f"QMP failed during {name}: {error}")
    return None
