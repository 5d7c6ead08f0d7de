"""A command in the guest with its streams connected while it runs.

guest-exec alone gives the output at the end, cut at 16 MiB, and wants the
whole input at the start. So a few lines of shell in the guest put the output
into files. What is short, the shell writes to its own output at the end, and so
guest-exec-status gives it with the status: a command that ends soon costs one
guest-exec and no other request. The files of one that lasts are read while it
runs (guest-file-read). Output is exact and unlimited but for the room in the
guest's folder of temporary files. Where no folder can be written to, what
guest-exec keeps must do.

The name of the files cannot be guessed, and nobody but their owner may open them.
They are gone at the end of the command, also when the host has gone: either the
shell removes them, or the host has done so once it has opened them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qemuctl.errors import AgentError, AgentRefused, QemuctlError
from qemuctl.guest.agent import Agent, Result, makes_sense
from qemuctl.guest.feeding import FEEDER, Feeding, Input, close_file, open_file

Sink = Callable[[bytes], None]

_READ_SIZE = 512 * 1024
# Of one request, in base64; the agent takes 64 MiB.
_INPUT_MOST = 8 * 1024 * 1024
# Looks at a command, from which on it counts as one that lasts, and its output is read
# from its files. That is a tenth of a second; more where the guest is slow to answer.
_LASTS = 7
# Seconds to end a command in the guest that nobody waits for any more. An agent that
# does not answer must not keep whoever has typed Ctrl-C.
_LAST_WORDS = 0.8
_PLACES = ("/tmp", "/run", "/dev/shm")  # noqa: S108 - the guest's

# $1 tells this command from others. With -C a file must be new, so that nobody's
# symbolic link is followed. (`true` makes it: a redirection of `:` that fails would end
# the shell.) The command gets the umask back, which only /proc tells a shell that
# starts no process for it.
#
# TERM is passed on. USR1 does so for a command that is called off, which has nobody to
# take its output.
_BEGIN = """
exec 3<&0 6>&2 2>/dev/null
token=$1 command= unwanted= feeder= mask=022
shift
trap 'kill -TERM "$command"' TERM
trap 'unwanted=1; kill -TERM "$command"' USR1
while read -r key value && [ "$key" != Umask: ]; do :; done <"/proc/$$/status"
[ "$key" != Umask: ] || mask=$value
umask 077
set -C
for place in PLACES; do
  f=$place/qemuctl.$token
  true >"$f.out" && true >"$f.err" && break
  f=
done
umask "$mask"
if [ "$f" ]; then exec 4>>"$f.out" 5>>"$f.err"; else exec 4>&1 5>&6; fi
"""

# The position of the shell's own descriptor is the command's, so it tells how much
# there is. What is too long for the shell's output waits until the host has taken the
# files; if nobody comes in half a minute, what the agent keeps of it must do.
_RUN = """
if [ "$feeder" ]; then
  "$@" <"$f.in/pipe" >&4 2>&5 3<&- 4>&- 5>&- 6>&- &
else
  "$@" <&3 >&4 2>&5 3<&- 4>&- 5>&- 6>&- &
fi
command=$!
[ -z "$unwanted" ] || kill -TERM "$command"
while :; do
  wait "$command"
  status=$?
  kill -0 "$command" || break
done
[ "$f" ] || exit "$status"
trap 'rm -rf "$f.out" "$f.err" "$f.in"; exit "$status"' TERM USR1
if [ "$feeder" ]; then kill "$feeder"; rm -rf "$f.in"; fi
short() { read -r _ size <"/proc/$$/fdinfo/$1" && [ "$size" -le 65536 ]; }
if [ -z "$unwanted" ]; then
  looks=0
  short 4 && short 5 || while [ -e "$f.out" ] && [ $((looks += 1)) -le 300 ]; do
    sleep 0.1 || sleep 1
  done
  [ ! -s "$f.out" ] || cat "$f.out"
  [ ! -s "$f.err" ] || cat "$f.err" >&6
fi
[ ! -e "$f.out" ] || rm -f "$f.out" "$f.err"
exit "$status"
"""


async def run_streaming(
    agent: Agent,
    argv: Sequence[str],
    *,
    stdin: AsyncIterator[bytes] | None,
    stdout: Sink,
    stderr: Sink,
) -> int:
    """Runs a command with live streams; gives its status as a shell counts it.

    ``stdin`` yields the input in parts of any size; None is an empty input.
    When the caller is cancelled, the command in the guest gets a TERM.
    Raises AgentError when the guest cannot do it or its agent is lost.
    """
    source = Input(stdin)
    try:
        await source.look()
        status = await _Run(agent, source, stdout, stderr).result(argv)
        if status is None:
            if not await source.gather(_INPUT_MOST):
                raise AgentError(
                    "the guest has no folder to write to, and without one it takes "
                    f"{_INPUT_MOST >> 20} MiB of input at most"
                )
            status = await _Run(agent, source, stdout, stderr).result(argv)
        assert status is not None
        return status
    finally:
        await source.close()


@dataclass
class _Output:
    """One output of a command: where its bytes go, and how many have gone there.

    ``handle`` is its file in the guest, when the host has taken it.
    """

    suffix: str
    sink: Sink
    handle: int | None = None
    passed: int = 0

    async def drain(self, agent: Agent) -> None:
        """Passes on all that is in the file by now (guest-file-read)."""
        while self.handle is not None:
            reply = await agent.request(
                "guest-file-read", {"handle": self.handle, "count": _READ_SIZE}
            )
            with makes_sense("guest-file-read"):
                count = int(reply["count"])
                data = base64.b64decode(reply["buf-b64"]) if count else b""
            self._pass_on(data)
            if count < _READ_SIZE:
                return

    def finish(self, whole: bytes) -> None:
        """Passes on what has not been read from the file. ``whole`` is empty when the
        host had taken the file before the end."""
        self._pass_on(whole[self.passed :])

    def _pass_on(self, data: bytes) -> None:
        if data:
            self.passed += len(data)
            self.sink(data)


class _Run:
    """One command, to be carried out once."""

    def __init__(self, agent: Agent, source: Input, stdout: Sink, stderr: Sink) -> None:
        self._agent = agent
        self._source = source
        self._in_parts = source.whole is None
        self._token = secrets.token_hex(16)
        self._files: str | None = None
        self._outputs = (_Output("out", stdout), _Output("err", stderr))
        self._feeding: Feeding | None = None
        self._taken = False

    async def result(self, argv: Sequence[str]) -> int | None:
        """Its status; None when the guest has no folder for an input in parts."""
        starting = asyncio.ensure_future(self._start(argv))
        try:
            # Cancelled here, the guest may start it all the same.
            pid = await asyncio.shield(starting)
            ended = Result.of(argv, await self._follow(pid))
            if self._in_parts and ended.text == self._token:
                return None
            for output, whole in zip(
                self._outputs, (ended.stdout, ended.stderr), strict=True
            ):
                output.finish(whole)
        except BaseException:
            # We were cancelled, or whoever reads the output has gone.
            with contextlib.suppress(TimeoutError, QemuctlError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._terminate(await starting)
            raise
        await self._close()
        if ended.truncated:
            raise AgentError(
                "the guest has no folder to write to, and without one its agent keeps "
                "16 MiB of output: the rest is lost"
            )
        return ended.exit_status

    async def _start(self, argv: Sequence[str]) -> int:
        feeder = FEEDER if self._in_parts else ""
        script = _BEGIN.replace("PLACES", " ".join(_PLACES)) + feeder + _RUN
        return await self._agent.start(
            ["/bin/sh", "-c", script, "sh", self._token, *argv],
            input=self._source.whole or None,
            capture=True,
        )

    async def _follow(self, pid: int) -> dict[str, Any]:
        """Passes on what the command writes until it ends; guest-exec-status's last
        reply."""
        looks = _LASTS if self._in_parts else 0
        async for status in self._agent.statuses(pid):
            ended, looks = status["exited"], looks + 1
            taking = looks >= _LASTS and not (ended or self._taken)
            opened = taking and await self._open()
            for output in self._outputs:
                await output.drain(self._agent)
            if ended:
                return status
            if opened:
                await self._remove()
            if self._feeding is not None:
                self._feeding.check()
        raise AssertionError("unreachable")

    async def _open(self) -> bool:
        """Opens the files in the guest; False when they are not there, or not yet, or
        not any more."""
        for place in _PLACES if self._files is None else ():
            files = f"{place}/qemuctl.{self._token}"
            with contextlib.suppress(AgentRefused):
                self._outputs[0].handle = await open_file(
                    self._agent, f"{files}.out", "r"
                )
                self._files = files
                break
        if self._files is None:
            return False
        try:
            if self._outputs[1].handle is None:
                self._outputs[1].handle = await open_file(
                    self._agent, f"{self._files}.err", "r"
                )
            if self._in_parts and self._feeding is None:
                folder = f"{self._files}.in"
                self._feeding = await Feeding.begin(self._agent, folder, self._source)
        except AgentRefused:
            return False
        return True

    async def _remove(self) -> None:
        """Removes the files, which live on as long as they are open: the command's end
        then has nothing to give, and nothing is left behind if we are killed."""
        names = [f"{self._files}.{output.suffix}" for output in self._outputs]
        with contextlib.suppress(AgentRefused):
            await self._agent.run(["rm", "-f", *names])
        self._taken = True

    async def _terminate(self, pid: int) -> None:
        if self._feeding is not None:
            await self._feeding.stop()
        with contextlib.suppress(QemuctlError):
            await self._agent.run(["/bin/kill", "-USR1", str(pid)])
        await self._close()

    async def _close(self) -> None:
        if self._feeding is not None:
            await self._feeding.stop()
            await self._feeding.close()
        for output in self._outputs:
            if output.handle is not None:
                await close_file(self._agent, output.handle)
