"""One command in the guest that does not outlive the interest in it.

The agent tells the pid of what it starts, so that a command whose time is up,
or that nobody waits for any more, can be ended with all that it has started;
what it wrote until then is there for the error message.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qemuctl.connection.agent_port import AGENT_PORT
from qemuctl.errors import AgentError, QemuctlError, UsageError, WaitTimeout
from qemuctl.guest.agent import Result, makes_sense
from qemuctl.qmp import Event, eventlog, eventstream
from qemuctl.qmp.events import Reset, VserportChange
from qemuctl.tail import plain

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

# Seconds for ending a command in the guest, its last words included.
_ENDING = 3.0
_LONGEST_NAME = 70
_TAIL_LINES = 20
_ENDED = "it was ended in the guest"
_HELD = (
    "it has ended in the guest, but something that it started keeps its output "
    "open;\nsend that elsewhere: COMMAND >/dev/null 2>&1 &"
)
_UNKNOWN = "the guest agent has not said that it was started"
_LIVES = "it may go on in the guest, which could not be asked to end it"

# TERM for a process and all that it started, and KILL half a second later; status
# 3 when it has gone by itself.
# A parent's number is the second field behind the name, which stands in brackets
# and may hold anything.
_GONE = 3
_END = r"""
[ -d "/proc/$1" ] || exit 3
all=$1 new=$1
while [ "$new" ]; do
  old=$new new=
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    pid=${stat#/proc/}
    set -- ${line##*) }
    case " $old " in *" $2 "*) new="$new ${pid%/stat}" ;; esac
  done
  all="$all$new"
done
kill -TERM $all 2>/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
  kill -0 $all 2>/dev/null || exit 0
  sleep 0.05 2>/dev/null || sleep 1
done
kill -KILL $all 2>/dev/null
exit 0
"""


class CommandFailed(QemuctlError, AssertionError):
    """A command in the guest ended otherwise than the test wants.

    ``result`` is how it ended; the hint holds the end of what it wrote.
    """

    def __init__(self, message: str, result: Result) -> None:
        self.result = result
        super().__init__(message, hint=written(result) or "it wrote nothing")


class Command:
    """One command, to be carried out once."""

    def __init__(
        self,
        vm: Vm,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.pid: int | None = None
        self._vm = vm
        self._argv = tuple(argv)
        self._input = input
        self._env = env or {}
        self._fate = _UNKNOWN
        self._left: Result | None = None
        self._starting: asyncio.Task[int] | None = None
        _check(self._argv, self._env)

    async def result(self) -> Result:
        """How it ended; when the caller is cancelled, it is ended in the guest.

        Raises AgentRefused when it cannot be started, AgentError when the guest or
        its agent ends or starts anew.
        """
        lost = asyncio.create_task(_agent_lost(self._vm))
        work = asyncio.create_task(self._carry_out())
        try:
            await asyncio.wait({lost, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise AgentError("the guest agent went away while the command ran")
        except asyncio.CancelledError:
            work.cancel()
            await self._end()
            raise
        finally:
            for task in (lost, work):
                task.cancel()
            await asyncio.gather(lost, work, return_exceptions=True)

    async def _carry_out(self) -> Result:
        agent = self._vm.agent
        # guest-exec's own environment would take the place of the agent's.
        names = [f"{name}={value}" for name, value in self._env.items()]
        argv = ["env", *names, *self._argv] if names else self._argv
        start = agent.start(argv, input=self._input, capture=True)
        self._starting = asyncio.create_task(start)
        # Cancelled here, the guest may start it all the same: `_end` waits for that.
        self.pid = await asyncio.shield(self._starting)
        self._fate = _LIVES
        return Result.of(self._argv, await agent.finished(self.pid))

    async def _end(self) -> None:
        """Ends it in the guest, and takes what it has written until then."""
        if self._starting is None:
            return
        agent = self._vm.agent
        with contextlib.suppress(QemuctlError, TimeoutError):
            async with asyncio.timeout(_ENDING):
                self.pid = await self._starting
                self._fate = _LIVES
                ending = await agent.run([*by_shell(_END), "sh", str(self.pid)])
                self._fate = _HELD
                if ending.status == _GONE:  # whoever keeps its output has no end
                    question = "guest-exec-status", {"pid": self.pid}
                    status = await agent.request(*question)
                else:
                    status = await agent.finished(self.pid)
                with makes_sense("guest-exec-status"):
                    exited = status["exited"]
                if exited:
                    self._fate = _ENDED
                    self._left = Result.of(self._argv, status)

    def overdue(self, stage: str, timeout: float) -> WaitTimeout:
        """The error for a command whose time was up, after `result` was cancelled."""
        words = written(self._left) if self._left else ""
        return too_late(self._vm, stage, timeout, self._fate, words)

    def last_words(self) -> str:
        """The end of its standard output, after it was ended."""
        return written(self._left, errors=False) if self._left else ""


def too_late(vm: Vm, stage: str, timeout: float, *words: str) -> WaitTimeout:
    """A WaitTimeout whose hint has more to say than the console's last lines."""
    error = WaitTimeout(stage, timeout, console_tail=vm.console_tail())
    error.hint = "\n".join(filter(None, (*words, error.hint))) or None
    return error


def _agent_lost(vm: Vm) -> Coroutine[Any, Any, Event]:
    """Waits until the guest closes the agent's port or is reset, counted from this
    call: what was asked before will then never be answered."""

    def is_end(event: Event) -> bool:
        # QEMU tells of a port's changes once a second, the last one only.
        if event.name != VserportChange.NAME:
            return event.name == Reset.NAME
        change = VserportChange.of(event)
        return change.id == AGENT_PORT and not change.open

    seen = eventlog.end(vm.paths.events)
    return eventstream.after(seen, vm.paths.events, is_end)


def by_shell(script: str) -> list[str]:
    """The argument list that runs a script."""
    return ["/bin/sh", "-c", script]


def in_short(argv: Sequence[str]) -> str:
    """A command as it stands in a message: a script without its shell."""
    text = argv[2] if list(argv[:2]) == by_shell("")[:2] else shlex.join(argv)
    line, *rest = plain(text).strip().splitlines() or [""]
    if len(line) > _LONGEST_NAME or rest:
        return line[:_LONGEST_NAME] + " …"
    return line


def written(result: Result, *, errors: bool = True) -> str:
    """The end of what a command wrote, safe to print; empty if it wrote nothing."""
    output = result.stdout
    if errors:
        output += b"\n" * (bool(output) and not output.endswith(b"\n")) + result.stderr
    lines = plain(output.decode(errors="replace")).strip().splitlines()
    if not lines:
        return ""
    return "\n".join(["it wrote:", *lines[-_TAIL_LINES:]])


def _check(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Raises UsageError for what would be lost on the way, without a word."""
    if not argv or not argv[0]:
        raise UsageError("the command is empty")
    if any("\0" in word for word in (*argv, *env, *env.values())):
        raise UsageError("a command cannot hold a NUL character")
    for name in env:
        if not name or "=" in name or name.startswith("-"):
            raise UsageError(f"not the name of a variable: {name!r}")
