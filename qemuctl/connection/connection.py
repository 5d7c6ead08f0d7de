"""`Connection`: the monitor and the agent of one VM that has a process, and waiting.

Whatever is done to a VM goes through here: typed commands, its state, and waits that
end when its QEMU does. What can be done with it is for the facets, which take a
`Connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

from qemuctl import connection, guest, host, qmp
from qemuctl.connection.agent_port import boots_first, last_word, port_is_open
from qemuctl.connection.monitors import STUCK_AFTER, connect, monitors, state_of
from qemuctl.errors import (
    AgentError,
    AgentRefused,
    CommandError,
    NotReady,
    QmpError,
    StateError,
    UnexpectedExit,
    WaitTimeout,
)
from qemuctl.paths import VmPaths
from qemuctl.process import held, wait_gone
from qemuctl.qmp import Event, Recorder, Session, eventlog
from qemuctl.qmp.commands import Command, R
from qemuctl.registry.records.migration_journal import check_here
from qemuctl.registry.records.outcome import Outcome, outcome
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import State
from qemuctl.tail import tail

if TYPE_CHECKING:  # loaded when it is used
    from qemuctl.guest import Agent

T = TypeVar("T")

READY_TIMEOUT = 120.0
CONNECT_TIMEOUT = 10.0
# Seconds for a monitor that has not answered for a while already.
_BRIEFLY = 0.1
# The shepherd needs a few hundredths of a second, if nobody stops it.
_SHEPHERD_PATIENCE = 5.0
# QEMU closes its sockets before it ends; this many seconds before, at most.
_END_AFTER_CHANNEL = 1.0
_TAIL_LINES = 20


class Connection:
    """The connection to one VM that has a process.

    ``paths`` are its files, ``record`` tells who its process is. The monitor
    is connected when first needed. ``clock`` is there for a guest that goes on from
    a saved state: it sets its clock, and gives why that did not come about.
    """

    def __init__(
        self, paths: VmPaths, record: Record, session: Session | None = None
    ) -> None:
        self.paths = paths
        self.record = record
        self.clock: asyncio.Task[str | None] | None = None
        self._session = session
        self._connecting = asyncio.Lock()

    @cached_property
    def agent(self) -> Agent:
        """What talks to the guest's agent."""
        return guest.Agent(self.paths.agent_socket)

    @property
    def name(self) -> str:
        return self.paths.name

    @property
    def connected(self) -> bool:
        """Whether there is a QMP session, which occupies its monitor."""
        return self._session is not None and not self._session.lost

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.record.qemu.pid

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets go of the monitor and the agent; the VM goes on."""
        if self.clock is not None:
            await self.clock
        if "agent" in self.__dict__:
            self.agent.release()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- QMP ---------------------------------------------------------------

    async def monitor(self) -> Session:
        """The QMP session, connected when there is none.

        Raises WaitTimeout when QEMU does not greet, StateError when it ended.
        """
        async with self._connecting:
            if self._session is not None and self._session.lost:
                await self._session.close()
                self._session = None
            if self._session is None:
                try:
                    self._session = await connect(
                        monitors(self.paths, self.record),
                        CONNECT_TIMEOUT,
                        Recorder(self.paths.qmp_log),
                    )
                except QmpError as error:
                    if held(self.paths.lock):
                        raise
                    reason = "the VM has ended"
                    raise StateError("use QMP", State.OFF, reason) from error
            return self._session

    async def execute(self, command: Command[R], **options: Any) -> R:
        """Sends a typed QMP command; raises as `Session.command` does."""
        return await (await self.monitor()).execute(command, **options)

    async def execute_each(
        self, commands: Iterable[Command[R]]
    ) -> list[R | CommandError]:
        """The replies to some commands, sent at once; as `Session.execute_each`."""
        return await (await self.monitor()).execute_each(commands)

    async def command(
        self, name: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Sends any QMP command; raises as `Session.command` does, and SpecError for
        what is not for a fork."""
        if self.record.template is not None:
            connection.check_command(name, arguments)
        if name == "cont":
            check_here(self.paths, "resume")
        return await (await self.monitor()).command(name, arguments, **options)

    async def state(self, *, connect: bool = False) -> State:
        """The state now, asked of QEMU, within about a second.

        With ``connect`` on a monitor that stays connected, for further questions.
        """
        if connect:
            with contextlib.suppress(QmpError, StateError, WaitTimeout, TimeoutError):
                async with asyncio.timeout(STUCK_AFTER):
                    await self.monitor()
            if not self.connected:
                return await state_of(self.paths, patience=_BRIEFLY)
        return await state_of(self.paths, self._session)

    # -- waiting -----------------------------------------------------------

    async def wait_exit(self) -> Outcome:
        """Waits for the end of the process and tells how it ended."""
        await wait_gone(self.record.qemu)
        # The shepherd writes the exit status before it ends.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHEPHERD_PATIENCE):
                await wait_gone(self.record.shepherd)
        return self.ended()

    def ended(self) -> Outcome:
        """How the process ended; call it when it has."""
        found = outcome(self.paths)
        return found or Outcome(None, None, False, None, "ended, nobody saw how")

    async def wait_ready(self, *, timeout: float = READY_TIMEOUT) -> None:
        """Waits until the guest's agent answers.

        Raises WaitTimeout with the stage and the console's tail, NotReady when the
        console or an ssh server tells that it will not come, and UnexpectedExit when
        QEMU ends first.
        """
        end = time.monotonic() + timeout
        with self.deadline("the guest agent to start", timeout):
            await self.unless_ended(self._likely(self.port_opened()), timeout)
        with self.deadline("the guest agent to answer", timeout):
            left = end - time.monotonic()
            await self.unless_ended(self._likely(self._answering()), left)

    async def _likely(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            past = boots_first(self.paths, self.record)
            log, forwards = self.paths.serial_log, self.record.forwards
            await connection.unless_hopeless(work, log, forwards, past=past)
        except NotReady as error:
            named = f"qemuctl ssh {self.name}" if error.by_ssh else None
            error.hint = named or f"the console's last lines:\n{self.console_tail()}"
            raise

    async def port_opened(self) -> None:
        """Waits until the guest has the agent's port open."""
        seen, past = eventlog.end(self.paths.events), eventlog.past(self.paths.events)
        if not port_is_open(past, self.paths, self.record):
            await qmp.eventstream.after(
                seen, self.paths.events, lambda event: last_word([event]) is True
            )

    async def _answering(self) -> None:
        while True:
            try:
                return await self.agent.ping(timeout=None)
            except AgentError:
                # The channel broke while QEMU lives: a reboot, or the other
                # side of a queue. The port tells when it is there again.
                await self.port_opened()
                await asyncio.sleep(0.1)

    async def wait_event(self, name: str, *, timeout: float) -> Event:
        """Waits for the next event of a name, counted from now.

        Raises WaitTimeout, and UnexpectedExit when QEMU ends without it.
        """
        with self.deadline(f"the event {name}", timeout) as left:
            return await self.unless_ended(
                qmp.eventstream.upcoming(self.paths.events, name), left
            )

    async def wait_state(self, wanted: State, *, timeout: float) -> None:
        """Waits until the VM is in a state; every change of it is an event."""
        with self.deadline(f"the VM to be {wanted}", timeout) as left:
            await self.unless_ended(self._reach(wanted), left)

    async def _reach(self, wanted: State) -> None:
        if await self.state() is wanted:
            return
        async with aclosing(qmp.eventstream.stream(self.paths.events)) as events:
            async for _ in events:
                if await self.state() is wanted:
                    return

    async def wait_console(self, pattern: str, *, timeout: float) -> str:
        """Waits for a regular expression on the serial console, what it said
        before included; gives the text that matched, as `search` does."""
        with self.deadline(f"/{pattern}/ on the console", timeout) as left:
            return await self.unless_ended(
                connection.search(self.paths.serial_log, pattern), left
            )

    @contextlib.contextmanager
    def deadline(self, stage: str, timeout: float) -> Iterator[float]:
        """Makes a TimeoutError of the block a WaitTimeout that names the stage."""
        try:
            yield timeout
        except TimeoutError as error:
            why = host.doubt() if self.record.accel == "kvm" else None
            raise WaitTimeout(
                stage, timeout, console_tail=self.console_tail(), why=why
            ) from error

    def console_tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines that the guest wrote to its serial console."""
        return tail(self.paths.serial_log, lines)

    async def unless_ended(
        self, work: Coroutine[Any, Any, T], timeout: float | None = None
    ) -> T:
        """The result of ``work``, unless the process ends or time runs out first.

        Raises UnexpectedExit and TimeoutError.
        """
        async with asyncio.timeout(timeout):
            task, end = asyncio.create_task(work), asyncio.create_task(self.wait_exit())
            try:
                await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
                if task.done() and channel_broke(task.exception()):
                    await asyncio.wait({end}, timeout=_END_AFTER_CHANNEL)
                if end.done() and (not task.done() or task.exception()):
                    raise self.unexpected_exit(end.result())
                return task.result()
            finally:
                await _cancelled(task, end)

    def unexpected_exit(self, ended: Outcome) -> UnexpectedExit:
        """The error for an end that came while the VM was needed."""
        log = tail(self.paths.qemu_log) if (ended.status or 0) > 0 else ""
        return UnexpectedExit(
            f"{self.name} ended: {ended.text}",
            status=ended.status,
            # An oops takes some 50 lines, and its cause is in the first ones.
            log_tail=log or self.console_tail(60),
        )


def channel_broke(error: BaseException | None) -> bool:
    """Whether QEMU or the agent may have gone: often the first sign of the end.

    A refusal is an answer, by somebody who is there.
    """
    if isinstance(error, StateError):  # it went before it was asked
        return error.state == State.OFF
    refusal = isinstance(error, (AgentRefused, CommandError))
    return isinstance(error, (AgentError, QmpError)) and not refusal


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
