"""A command with live streams against guests that lie about their files."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import EXITED, FakeGuest, as_agent, encoded
from fake_qmp import serving

from qemuctl.errors import AgentError
from qemuctl.guest import stream
from qemuctl.guest.agent import Agent
from qemuctl.guest.feeding import Input
from qemuctl.guest.stream import run_streaming

TIMEOUT = 60.0
RUNS = {"exited": False}


@pytest.fixture(autouse=True)
def _lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that has not ended at the first look counts as one that lasts."""
    monkeypatch.setattr(stream, "_LASTS", 1)


def streaming_guest(**changes: list[Any]) -> FakeGuest:
    """A guest in which a command lasts, writes `hello` and ends with status 4.

    Its second guest-exec removes the files.
    """
    answers: dict[str, list[Any]] = {
        "guest-exec": [{"pid": 1}, {"pid": 2}],
        "guest-exec-status": [RUNS, EXITED, EXITED | {"exitcode": 4}],
        "guest-file-open": [10, 11],
        "guest-file-read": [
            {"count": 5, "buf-b64": encoded(b"hello"), "eof": True},
            {"count": 0, "buf-b64": "", "eof": True},
        ],
    }
    renamed = {name.replace("_", "-"): values for name, values in changes.items()}
    return FakeGuest(answers | renamed)


def asked(guest: FakeGuest, name: str) -> list[dict[str, Any]]:
    return [arguments for each, arguments in guest.seen if each == name]


async def streamed(
    path: Path,
    agent: Agent,
    guest: FakeGuest,
    stdin: AsyncIterator[bytes] | None = None,
) -> tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
    async with serving(path, as_agent(guest)), asyncio.timeout(TIMEOUT):
        try:
            status = await run_streaming(
                agent, ["x", "y z"], stdin=stdin, stdout=out.extend, stderr=err.extend
            )
        finally:
            agent.release()
    return status, bytes(out), bytes(err)


async def test_the_output_of_a_command_that_lasts_is_read_from_its_files(
    path: Path, agent: Agent
) -> None:
    guest = streaming_guest()
    assert await streamed(path, agent, guest) == (4, b"hello", b"")
    wrapped, removal = asked(guest, "guest-exec")
    token = wrapped["arg"][3]
    assert wrapped["arg"][-4:] == ["sh", token, "x", "y z"]
    files = [f"/tmp/qemuctl.{token}.{name}" for name in ("out", "err")]
    assert [a["path"] for a in asked(guest, "guest-file-open")] == files
    assert [removal["path"], *removal["arg"]] == ["rm", "-f", *files]
    assert [a["handle"] for a in asked(guest, "guest-file-close")] == [10, 11]


async def test_a_command_that_ends_at_once_costs_one_request_and_its_status(
    path: Path, agent: Agent
) -> None:
    status = {"exited": True, "exitcode": 4, "out-data": encoded(b"o")}
    guest = streaming_guest(guest_exec_status=[status | {"err-data": encoded(b"e")}])
    assert await streamed(path, agent, guest) == (4, b"o", b"e")
    assert [name for name, _ in guest.seen] == ["guest-exec", "guest-exec-status"]


async def test_what_was_read_from_a_file_is_not_taken_from_the_end_again(
    path: Path, agent: Agent
) -> None:
    end = EXITED | {"out-data": encoded(b"hello, world"), "err-data": encoded(b"e")}
    guest = streaming_guest(
        # One file is open when the guest's shell removes both.
        guest_exec_status=[RUNS, end],
        guest_file_open=[10, Exception],
    )
    assert await streamed(path, agent, guest) == (0, b"hello, world", b"e")
    assert [a["handle"] for a in asked(guest, "guest-file-close")] == [10]


async def test_files_that_are_not_there_yet_are_looked_for_again(
    path: Path, agent: Agent
) -> None:
    guest = streaming_guest(
        guest_exec_status=[RUNS, RUNS, EXITED, EXITED | {"exitcode": 4}],
        guest_file_open=[Exception, Exception, Exception, Exception, 10, 11],
    )
    assert await streamed(path, agent, guest) == (4, b"hello", b"")
    folders = [a["path"].split("/qemuctl")[0] for a in asked(guest, "guest-file-open")]
    places = ["/tmp", "/run", "/dev/shm"]
    assert folders == [*places, "/tmp", "/run", "/run"]


async def test_an_input_that_is_there_goes_with_the_command(
    path: Path, agent: Agent
) -> None:
    async def stdin() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    guest = streaming_guest(guest_exec_status=[EXITED])
    assert await streamed(path, agent, guest, stdin()) == (0, b"", b"")
    [wrapped] = asked(guest, "guest-exec")
    assert wrapped["input-data"] == encoded(b"ab")


async def test_an_input_in_parts_waits_for_its_end_where_no_folder_takes_it(
    path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(_: Input) -> None:
        """Nothing is there at once."""

    async def stdin() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    monkeypatch.setattr(Input, "look", look)
    monkeypatch.setattr(secrets, "token_hex", lambda _: "t")
    refused = {"exited": True, "exitcode": 1, "out-data": encoded(b"t\n")}
    done = EXITED | {"out-data": encoded(b"done")}
    guest = streaming_guest(guest_exec_status=[RUNS, refused, done])
    guest.answers["guest-file-open"] = [Exception]
    assert await streamed(path, agent, guest, stdin()) == (0, b"done", b"")
    first, second = asked(guest, "guest-exec")
    assert ["mkfifo" in each["arg"][1] for each in (first, second)] == [True, False]
    assert second["input-data"] == encoded(b"ab")


STREAM_LIES: dict[str, dict[str, list[Any]]] = {
    "handle that is none": {"guest_file_open": [{}]},
    "read without count": {"guest_file_read": [{}]},
    "read of a number": {"guest_file_read": [5]},
    "count that is text": {"guest_file_read": [{"count": "x", "buf-b64": ""}]},
    "data that is not base64": {"guest_file_read": [{"count": 1, "buf-b64": "x"}]},
    "signal that is text": {"guest_exec_status": [{"exited": True, "signal": "x"}]},
    "neither status nor signal": {"guest_exec_status": [{"exited": True}]},
}


@pytest.mark.parametrize("changes", STREAM_LIES.values(), ids=STREAM_LIES)
async def test_a_guest_that_lies_about_its_files_is_an_error_that_can_be_told(
    path: Path, agent: Agent, changes: dict[str, list[Any]]
) -> None:
    copied = {name: list(values) for name, values in changes.items()}
    with pytest.raises(AgentError, match="the guest agent"):
        await streamed(path, agent, streaming_guest(**copied))


async def test_a_guest_that_cannot_keep_output_has_what_its_agent_keeps(
    path: Path, agent: Agent
) -> None:
    cut = EXITED | {"out-data": encoded(b"out"), "out-truncated": True}
    sunk: list[bytes] = []
    async with serving(path, as_agent(streaming_guest(guest_exec_status=[cut]))):
        with pytest.raises(AgentError, match="the rest is lost"):
            await run_streaming(
                agent, ["x"], stdin=None, stdout=sunk.append, stderr=sunk.append
            )
        agent.release()
    assert sunk == [b"out"]


async def test_a_cancelled_command_gets_a_term_in_the_guest(
    path: Path, agent: Agent
) -> None:
    began = asyncio.Event()
    guest = streaming_guest(
        guest_exec=[{"pid": 1}, {"pid": 2}, {"pid": 3}],
        guest_exec_status=[RUNS, EXITED, RUNS],
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
    last = asked(guest, "guest-exec")[-1]
    assert [last["path"], *last["arg"]] == ["/bin/kill", "-USR1", "1"]
