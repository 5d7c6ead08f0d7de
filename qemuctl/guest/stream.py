"""A command in the guest with its streams connected while it runs.

guest-exec alone gives the output at the end, cut at 16 MiB, and wants the
whole input at the start. So a few lines of shell in the guest put the output
into files, which guest-file-read follows, and feed the input, which arrives
in parts, through a pipe. Output is exact and unlimited but for the room in
the guest's temporary folder, where it is until the command ends. Where no folder can
be written to, what guest-exec gives at the end must do.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from qemuctl.errors import AgentError, AgentRefused, QemuctlError
from qemuctl.guest.agent import Agent, makes_sense

Sink = Callable[[bytes], None]

_READ_SIZE = 512 * 1024
_INPUT_PART = 1024 * 1024
# Of one request, in base64; the agent takes 64 MiB.
_INPUT_MOST = 8 * 1024 * 1024
_LOOK_EVERY = 0.01
# Seconds to end a command in the guest that nobody waits for any more. An agent that
# does not answer must not keep whoever has typed Ctrl-C.
_LAST_WORDS = 0.8

_PREPARE = """
umask 077
for place in "${TMPDIR:-/tmp}" /run /dev/shm; do
  d=$(mktemp -d "$place/qemuctl.XXXXXX" 2>/dev/null) && break
done
[ "$d" ] || exit
[ "$1" = none ] || mkfifo "$d/next" "$d/in" || exit
: >"$d/out" && : >"$d/err" && echo "$d"
"""

# The feeder reads names of parts from `next` and pipes each into the command;
# an empty name is the end of the input. (The agent keeps `next` open: were its
# end the signal, an input that ends at once could end before anybody listens.)
# TERM is passed on, so that an interrupted command does not go on in the guest.
_WRAPPER = """
d=$1 input=$2
shift 2
if [ "$input" = stream ]; then
  { while read -r part && [ "$part" ]; do cat "$d/$part"; rm -f "$d/$part"; done \
    <"$d/next" >"$d/in"; } 2>/dev/null &
  feeder=$!
  "$@" <"$d/in" >"$d/out" 2>"$d/err" &
else
  feeder=
  "$@" </dev/null >"$d/out" 2>"$d/err" &
fi
command=$!
trap 'kill -TERM "$command"' TERM
while :; do
  wait "$command"
  status=$?
  kill -0 "$command" 2>/dev/null || break
done
[ -z "$feeder" ] || kill "$feeder" 2>/dev/null
rm -rf "$d"
exit "$status"
"""


@dataclass
class _Output:
    """One output file in the guest and where its bytes go."""

    handle: int
    sink: Sink

    async def drain(self, agent: Agent) -> None:
        """Passes on all that is in the file by now (guest-file-read)."""
        while True:
            reply = await agent.request(
                "guest-file-read", {"handle": self.handle, "count": _READ_SIZE}
            )
            with makes_sense("guest-file-read"):
                count = int(reply["count"])
                data = base64.b64decode(reply["buf-b64"]) if count else b""
            if data:
                self.sink(data)
            if count < _READ_SIZE:
                return


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
    mode = "none" if stdin is None else "stream"
    prepared = await agent.run(["/bin/sh", "-c", _PREPARE, "sh", mode])
    folder = prepared.text
    if not prepared.ok or not folder:
        return await _captured(agent, argv, stdin, stdout, stderr)
    outputs = [
        _Output(await _open(agent, f"{folder}/{name}", "r"), sink)
        for name, sink in (("out", stdout), ("err", stderr))
    ]
    # r+ does not wait for the other side of the pipe, as w would.
    following = await _open(agent, f"{folder}/next", "r+") if stdin else None
    pid = await agent.start(["/bin/sh", "-c", _WRAPPER, "sh", folder, mode, *argv])
    handles = [output.handle for output in outputs]
    feeding = None
    if stdin is not None and following is not None:
        handles.append(following)
        feeding = asyncio.create_task(_feed(agent, folder, following, stdin))
    try:
        status = await _follow(agent, pid, outputs, feeding)
    except BaseException:
        # We were cancelled, or whoever reads the output has gone.
        await _stopped(feeding)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                with contextlib.suppress(QemuctlError):
                    await agent.run(["/bin/kill", "-TERM", str(pid)])
                await _close(agent, handles)
        raise
    await _stopped(feeding)
    await _close(agent, handles)
    return status


async def _stopped(feeding: asyncio.Task[None] | None) -> None:
    if feeding is not None:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _close(agent: Agent, handles: Sequence[int]) -> None:
    for handle in handles:
        with contextlib.suppress(QemuctlError):
            await agent.request("guest-file-close", {"handle": handle})


async def _captured(
    agent: Agent,
    argv: Sequence[str],
    stdin: AsyncIterator[bytes] | None,
    stdout: Sink,
    stderr: Sink,
) -> int:
    """The same in a guest where no folder can be written to: all of the input first,
    and the output at the end, as far as the agent keeps it."""
    data = bytearray()
    async for part in stdin or _nothing():
        data += part
        if len(data) > _INPUT_MOST:
            raise AgentError(
                "the guest has no folder to write to, and without one it takes "
                f"{_INPUT_MOST >> 20} MiB of input at most"
            )
    # The agent's word for a command that is not there is an error, not a status.
    words = ["/bin/sh", "-c", '"$@"', "sh", *argv]
    result = await agent.run(words, input=bytes(data) if stdin else None)
    stdout(result.stdout)
    stderr(result.stderr)
    if result.truncated:
        raise AgentError(
            "the guest has no folder to write to, and without one its agent keeps "
            "16 MiB of output: the rest is lost"
        )
    return result.exit_status


async def _nothing() -> AsyncIterator[bytes]:
    parts: tuple[bytes, ...] = ()
    for part in parts:
        yield part


async def _follow(
    agent: Agent,
    pid: int,
    outputs: Sequence[_Output],
    feeding: asyncio.Task[None] | None,
) -> int:
    async for status in agent.statuses(pid):
        for output in outputs:
            await output.drain(agent)
        if status["exited"]:
            with makes_sense("guest-exec-status"):
                code = status.get("exitcode")
                return int(code) if code is not None else 128 + int(status["signal"])
        if feeding is not None and feeding.done() and not feeding.cancelled():
            feeding.result()
    raise AssertionError("unreachable")


async def _open(agent: Agent, path: str, mode: str) -> int:
    handle = await agent.request("guest-file-open", {"path": path, "mode": mode})
    with makes_sense("guest-file-open"):
        return int(handle)


async def _feed(
    agent: Agent, folder: str, following: int, stdin: AsyncIterator[bytes]
) -> None:
    """Sends the input in parts, each a file whose name goes down `next`."""
    number = 0
    async for data in stdin:
        for start in range(0, len(data), _INPUT_PART):
            number += 1
            name = f"part{number}"
            # Two parts at most wait in the guest, however slow its reader.
            await _until_taken(agent, f"{folder}/part{number - 2}")
            part = data[start : start + _INPUT_PART]
            try:
                handle = await _open(agent, f"{folder}/{name}", "w")
            except AgentRefused:
                return  # the command has ended, and its folder is gone
            await _write(agent, handle, part)
            await agent.request("guest-file-close", {"handle": handle})
            await _write(agent, following, f"{name}\n".encode())
            await agent.request("guest-file-flush", {"handle": following})
    await _write(agent, following, b"\n")
    await agent.request("guest-file-flush", {"handle": following})


async def _until_taken(agent: Agent, path: str) -> None:
    """Waits until the feeder has removed a part; the agent has no event for it."""
    while True:
        try:
            handle = await _open(agent, path, "r")
        except AgentRefused:
            return
        await agent.request("guest-file-close", {"handle": handle})
        await asyncio.sleep(_LOOK_EVERY)


async def _write(agent: Agent, handle: int, data: bytes) -> None:
    while data:
        text = base64.b64encode(data).decode()
        reply = await agent.request(
            "guest-file-write", {"handle": handle, "buf-b64": text}
        )
        with makes_sense("guest-file-write"):
            taken = int(reply["count"])
            if taken < 1:
                raise AgentError("the guest took none of the input: is it full?")
            data = data[taken:]
