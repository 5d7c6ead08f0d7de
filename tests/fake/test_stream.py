"""A command with live streams against guests that lie about their files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_agent import EXITED, FakeGuest, as_agent, encoded
from fake_qmp import serving

from qemuctl.errors import AgentError
from qemuctl.guest.agent import Agent
from qemuctl.guest.stream import run_streaming

TIMEOUT = 60.0
SHORT = 0.05


def streaming_guest(**changes: list[Any]) -> FakeGuest:
    """A guest in which a command writes `hello` and ends with status 4."""
    prepared = EXITED | {"out-data": encoded(b"/tmp/q\n")}
    answers: dict[str, list[Any]] = {
        "guest-exec": [{"pid": 1}, {"pid": 2}],
        "guest-exec-status": [prepared, {"exited": False}, EXITED | {"exitcode": 4}],
        "guest-file-open": [10, 11],
        "guest-file-read": [
            {"count": 5, "buf-b64": encoded(b"hello"), "eof": True},
            {"count": 0, "buf-b64": "", "eof": True},
        ],
    }
    renamed = {name.replace("_", "-"): values for name, values in changes.items()}
    return FakeGuest(answers | renamed)


async def test_streaming_passes_output_on_and_gives_the_status(
    path: Path, agent: Agent
) -> None:
    out, err = bytearray(), bytearray()
    guest = streaming_guest()
    async with serving(path, as_agent(guest)):
        status = await run_streaming(
            agent, ["x", "y z"], stdin=None, stdout=out.extend, stderr=err.extend
        )
        agent.release()
    assert (status, bytes(out), bytes(err)) == (4, b"hello", b"")
    wrapped = [a for n, a in guest.seen if n == "guest-exec"][1]
    assert wrapped["arg"][-5:] == ["sh", "/tmp/q", "none", "x", "y z"]
    closed = [a["handle"] for n, a in guest.seen if n == "guest-file-close"]
    assert closed == [10, 11]


STREAM_LIES: dict[str, dict[str, list[Any]]] = {
    "handle that is none": {"guest_file_open": [{}]},
    "read without count": {"guest_file_read": [{}]},
    "read of a number": {"guest_file_read": [5]},
    "count that is text": {"guest_file_read": [{"count": "x", "buf-b64": ""}]},
    "data that is not base64": {"guest_file_read": [{"count": 1, "buf-b64": "x"}]},
    "signal that is text": {
        "guest_exec_status": [
            EXITED | {"out-data": encoded(b"/tmp/q\n")},
            {"exited": True, "signal": "x"},
        ]
    },
    "neither status nor signal": {
        "guest_exec_status": [
            EXITED | {"out-data": encoded(b"/tmp/q\n")},
            {"exited": True},
        ]
    },
}


@pytest.mark.parametrize("changes", STREAM_LIES.values(), ids=STREAM_LIES)
async def test_a_guest_that_lies_about_its_files_is_an_error_that_can_be_told(
    path: Path, agent: Agent, changes: dict[str, list[Any]]
) -> None:
    sunk: list[bytes] = []
    copied = {name: list(values) for name, values in changes.items()}
    async with serving(path, as_agent(streaming_guest(**copied))):
        with pytest.raises(AgentError, match="the guest agent"):
            await run_streaming(
                agent, ["x"], stdin=None, stdout=sunk.append, stderr=sunk.append
            )
        agent.release()


async def test_a_guest_that_cannot_keep_output_has_what_its_agent_keeps(
    path: Path, agent: Agent
) -> None:
    sunk: list[bytes] = []
    full = {"exited": True, "exitcode": 1, "err-data": encoded(b"No space left\n")}
    kept = EXITED | {"exitcode": 3, "out-data": encoded(b"out")}
    cut = kept | {"out-truncated": True}
    guest = streaming_guest(guest_exec_status=[full, kept, full, cut])
    streams = {"stdin": None, "stdout": sunk.append, "stderr": lambda _: None}
    async with serving(path, as_agent(guest)):
        assert await run_streaming(agent, ["x"], **streams) == 3
        with pytest.raises(AgentError, match="the rest is lost"):
            await run_streaming(agent, ["x"], **streams)
        agent.release()
    assert sunk == [b"out", b"out"]


async def test_a_cancelled_command_gets_a_term_in_the_guest(
    path: Path, agent: Agent
) -> None:
    began = asyncio.Event()
    guest = streaming_guest(
        guest_exec=[{"pid": 1}, {"pid": 2}, {"pid": 3}],
        guest_exec_status=[
            EXITED | {"out-data": encoded(b"/tmp/q\n")},
            {"exited": False},
        ],
    )

    def sink(_data: bytes) -> None:
        began.set()

    async with serving(path, as_agent(guest)):
        task = asyncio.create_task(
            run_streaming(agent, ["sleep"], stdin=None, stdout=sink, stderr=sink)
        )
        async with asyncio.timeout(TIMEOUT):
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        agent.release()
    last = [a for n, a in guest.seen if n == "guest-exec"][-1]
    assert [last["path"], *last["arg"]] == ["/bin/kill", "-TERM", "2"]
