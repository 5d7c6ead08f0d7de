"""The agent's client against guests that hang, lie and send rubbish."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from fake_agent import EXITED, AgentPeer, FakeGuest, as_agent, encoded
from fake_qmp import serving

from qemuctl.errors import AgentError, AgentRefused, WaitTimeout
from qemuctl.guest import agent as agent_module
from qemuctl.guest.agent import Agent
from qemuctl.units import MIB
from tests.hostile import memory

TIMEOUT = 60.0
SHORT = 0.05


async def test_a_request_comes_after_a_sync(path: Path, agent: Agent) -> None:
    seen: list[Any] = []

    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        seen.append(await peer.answer({}))
        seen.append(await peer.answer({"a": 1}))
        await peer.gone()

    async with serving(path, as_agent(script)):
        await agent.ping()
        assert await agent.request("guest-x", {"b": 2}) == {"a": 1}
        agent.release()
    assert seen == [
        {"execute": "guest-ping"},
        {"execute": "guest-x", "arguments": {"b": 2}},
    ]


@pytest.mark.parametrize(
    "stale",
    [
        b'{"return": {"stale": 1}}\n',
        b'{"return": {"stale": 1}}\n{"error": {"desc": "stale"}}\n',
        b'{"return": {"cut',
        b"rubbish\n\n\n",
        b"\x00\x01\xfe\n",
        b'\xff{"return": 1}\n',
        b"\xffrubbish\n",
        b"\xff[]\n",
        b"\xff" * 1000,
        b"\xff" + b"[" * 100_000 + b"\n",
        b"x" * 1_000_000 + b"\n",
    ],
    ids=[
        *("reply", "several", "cut", "text", "binary", "other sync", "bad sync"),
        *("list", "delimiters", "deep", "long"),
    ],
)
async def test_whatever_is_left_in_the_pipe_is_skipped(
    path: Path, agent: Agent, stale: bytes
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync(before=stale)
        await peer.answer({"fresh": True})
        await peer.gone()

    async with serving(path, as_agent(script)):
        assert await agent.request("guest-x", timeout=TIMEOUT) == {"fresh": True}
        agent.release()


async def test_an_error_reply_has_the_agents_words_and_keeps_the_connection(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        await peer.send({"error": {"class": "GenericError", "desc": "no such file"}})
        await peer.answer({"next": 1})
        await peer.gone()

    async with serving(path, as_agent(script)):
        with pytest.raises(AgentRefused, match="refused guest-file-open: no such file"):
            await agent.request("guest-file-open", {"path": "/x"})
        assert await agent.request("guest-x") == {"next": 1}
        agent.release()


RUBBISH = {
    "text": b"rubbish\n",
    "binary": b"\xfe\x00\x80\n",
    "empty line": b"\n",
    "list": b"[]\n",
    "list with the word": b'["return"]\n',
    "text with the word": b'"return"\n',
    "number": b"5\n",
    "null": b"null\n",
    "neither": b"{}\n",
    "text error": b'{"error": "no"}\n',
    "null error": b'{"error": null}\n',
    "both": b'{"return": {}, "error": "no"}\n',
    "deep": b"[" * 100_000 + b"\n",
    "deep object": b'{"return":' * 100_000 + b"\n",
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_is_an_error_and_the_next_request_syncs_again(
    path: Path, agent: Agent, rubbish: bytes
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        await peer.raw(rubbish)
        await peer.gone()

    async with serving(path, as_agent(script)):
        for _ in range(2):
            with pytest.raises(AgentError, match="the guest agent"):
                await agent.request("guest-x", timeout=TIMEOUT)


async def test_rubbish_is_quoted_but_not_all_of_it(path: Path, agent: Agent) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        await peer.raw(b"\x1b[2J" + b"x" * 100_000 + b"\n")
        await peer.gone()

    async with serving(path, as_agent(script)):
        with pytest.raises(AgentError) as caught:
            await agent.request("guest-x")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


async def test_an_agent_that_hangs_is_a_time_out_and_its_reply_is_skipped(
    path: Path, agent: Agent
) -> None:
    late: list[bytes] = []

    async def script(peer: AgentPeer) -> None:
        await peer.sync(before=b"".join(late))
        request = await peer.read()
        if not late:
            # It answers into the pipe after we gave up.
            late.append(b'{"return": {"late": true}}\n')
            await peer.gone()
            return
        await peer.send({"return": {"to": request["execute"]}})
        await peer.gone()

    async with serving(path, as_agent(script)):
        with pytest.raises(WaitTimeout) as caught:
            await agent.request("guest-slow", timeout=SHORT)
        assert caught.value.stage == "the guest agent's reply to guest-slow"
        reply = await agent.request("guest-next", timeout=TIMEOUT)
        assert reply == {"to": "guest-next"}
        agent.release()


async def test_an_agent_that_does_not_even_sync_is_a_time_out(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.gone()

    async with serving(path, as_agent(script)):
        with pytest.raises(WaitTimeout):
            await agent.ping(timeout=SHORT)


async def test_an_agent_that_never_stops_talking_is_a_time_out(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.read()
        while True:
            await peer.raw(b'{"return": 1}\n' * 1000)
            await asyncio.sleep(0)

    async with serving(path, as_agent(script)):
        with pytest.raises(WaitTimeout):
            await agent.ping(timeout=SHORT)


async def test_a_reply_in_pieces_is_put_together(path: Path, agent: Agent) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        for byte in b'{"return": {"whole": "\xc3\xbc"}}\n':
            await peer.raw(bytes([byte]))
            await asyncio.sleep(0)
        await peer.gone()

    async with serving(path, as_agent(script)):
        assert await agent.request("guest-x") == {"whole": "ü"}
        agent.release()


@pytest.mark.parametrize("half", [b"", b'{"return": {"half'])
async def test_a_channel_that_closes_before_the_reply_ends_is_an_error(
    path: Path, agent: Agent, half: bytes
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        await peer.raw(half)

    async with serving(path, as_agent(script)):
        for _ in range(2):
            with pytest.raises(AgentError, match=r"channel (closed|broke)"):
                await agent.request("guest-x", timeout=TIMEOUT)


async def test_a_reply_of_many_megabytes_is_read(path: Path, agent: Agent) -> None:
    data = os.urandom(12 << 20)

    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.answer({"buf-b64": encoded(data)})
        await peer.gone()

    async with serving(path, as_agent(script)):
        count = {"handle": 1, "count": len(data)}
        reply = await agent.request("guest-file-read", count, timeout=TIMEOUT)
        assert base64.b64decode(reply["buf-b64"]) == data
        agent.release()


async def test_a_reply_without_end_is_an_error_and_not_all_memory(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        for _ in range(32):
            await peer.raw(b"x" * MIB)
        await peer.gone()

    with memory(12 * MIB):
        async with serving(path, as_agent(script)):
            with pytest.raises(AgentError, match="channel broke"):
                await agent.request("guest-x", timeout=TIMEOUT)


async def test_what_is_left_in_the_pipe_is_skipped_however_much_it_is(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        for _ in range(32):
            await peer.raw(b"x" * MIB)
        await peer.sync()
        await peer.answer({"fresh": True})
        await peer.gone()

    with memory(12 * MIB):
        async with serving(path, as_agent(script)):
            reply = await agent.request("guest-x", timeout=TIMEOUT)
    assert reply == {"fresh": True}
    agent.release()


async def test_nobody_who_listens_is_an_error(path: Path, agent: Agent) -> None:
    with pytest.raises(AgentError, match=f"no guest agent socket at {path}"):
        await agent.ping()


async def test_requests_of_one_process_go_one_after_the_other(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        while True:
            request = await peer.read()
            await peer.send({"return": request["arguments"]["number"]})

    async with serving(path, as_agent(script)):
        replies = await asyncio.gather(
            *(agent.request("guest-x", {"number": n}) for n in range(20))
        )
        assert replies == list(range(20))
        agent.release()


async def test_an_idle_agent_is_let_go_for_the_next_in_the_queue(
    path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "LINGER", SHORT)
    second = Agent(path)
    async with serving(path, as_agent(FakeGuest({}))):
        await agent.ping()
        await second.ping(timeout=TIMEOUT)
        await agent.ping(timeout=TIMEOUT)
        agent.release()
        second.release()


async def test_a_cancelled_request_does_not_spoil_the_next(
    path: Path, agent: Agent
) -> None:
    arrived = asyncio.Event()

    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        request = await peer.read()
        if request["execute"] == "guest-slow":
            arrived.set()
            await peer.gone()
            return
        await peer.send({"return": {"to": request["execute"]}})
        await peer.gone()

    async with serving(path, as_agent(script)):
        task = asyncio.create_task(agent.request("guest-slow"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await agent.request("guest-next") == {"to": "guest-next"}
        agent.release()


async def test_run_gives_status_and_streams(path: Path, agent: Agent) -> None:
    guest = FakeGuest(
        {
            "guest-exec": [{"pid": 7}],
            "guest-exec-status": [
                {"exited": False},
                EXITED
                | {"exitcode": 3, "out-data": encoded(b"out\n\0"), "out-truncated": 1}
                | {"err-data": encoded(b"err")},
            ],
        }
    )
    async with serving(path, as_agent(guest)):
        result = await agent.run(["cat", "-x"], input=b"in\0", env={"A": "b c"})
        agent.release()
    assert (result.status, result.signal, result.ok) == (3, None, False)
    assert (result.stdout, result.stderr, result.truncated) == (
        b"out\n\0",
        b"err",
        True,
    )
    name, arguments = guest.seen[0]
    assert name == "guest-exec"
    assert arguments == {
        "path": "cat",
        "arg": ["-x"],
        "capture-output": True,
        "input-data": encoded(b"in\0"),
        "env": ["A=b c"],
    }
    assert {a["pid"] for n, a in guest.seen if n == "guest-exec-status"} == {7}


async def test_run_tells_a_signal_as_a_shell_does(path: Path, agent: Agent) -> None:
    guest = FakeGuest(
        {
            "guest-exec": [{"pid": 7}],
            "guest-exec-status": [{"exited": True, "signal": int(signal.SIGKILL)}],
        }
    )
    async with serving(path, as_agent(guest)):
        result = await agent.run(["x"])
        agent.release()
    assert (result.status, result.signal, result.exit_status) == (None, 9, 137)


async def test_a_command_that_does_not_end_is_a_time_out(
    path: Path, agent: Agent
) -> None:
    guest = FakeGuest(
        {"guest-exec": [{"pid": 7}], "guest-exec-status": [{"exited": False}]}
    )
    async with serving(path, as_agent(guest)):
        with pytest.raises(WaitTimeout, match="the end of 'sleep' in the guest"):
            await agent.run(["sleep", "9"], timeout=SHORT)
        agent.release()


async def test_a_long_command_does_not_keep_the_agent_from_others(
    path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = FakeGuest(
        {"guest-exec": [{"pid": 7}], "guest-exec-status": [{"exited": False}]}
    )
    other = Agent(path)
    async with serving(path, as_agent(guest)):
        running = asyncio.create_task(agent.run(["sleep", "9"]))
        await other.ping(timeout=TIMEOUT)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        agent.release()
        other.release()


LIES: dict[str, dict[str, list[Any]]] = {
    "no pid": {"guest-exec": [{}]},
    "pid that is text": {"guest-exec": [{"pid": "x"}]},
    "no object": {"guest-exec": [5]},
    "null": {"guest-exec": [None]},
    "no state": {"guest-exec": [{"pid": 1}], "guest-exec-status": [{}]},
    "state that is a list": {"guest-exec": [{"pid": 1}], "guest-exec-status": [[]]},
    "output that is not base64": {
        "guest-exec": [{"pid": 1}],
        "guest-exec-status": [EXITED | {"out-data": "x"}],
    },
    "output that is a number": {
        "guest-exec": [{"pid": 1}],
        "guest-exec-status": [EXITED | {"err-data": 5}],
    },
}


@pytest.mark.parametrize("answers", LIES.values(), ids=LIES)
async def test_a_lying_agent_is_an_error_that_can_be_told(
    path: Path, agent: Agent, answers: dict[str, list[Any]]
) -> None:
    copied = {name: list(values) for name, values in answers.items()}
    async with serving(path, as_agent(FakeGuest(copied))):
        with pytest.raises(AgentError, match="the guest agent"):
            await agent.run(["x"])
        agent.release()


def test_the_rubbish_of_these_tests_is_rubbish() -> None:
    for data in RUBBISH.values():
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            continue
        good = isinstance(value, dict) and isinstance(value.get("return"), dict)
        assert not good or "error" in value


@pytest.mark.parametrize("reply", [b'{"return": 1e999}', b'{"return": Infinity}'])
async def test_a_number_without_a_bound_makes_no_sense(
    path: Path, agent: Agent, reply: bytes
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        await peer.raw(reply.replace(b"1e999", b'{"pid": 1e999}') + b"\n")

    async with serving(path, as_agent(script)):
        with pytest.raises(AgentError, match="makes no sense"):
            await agent.start(["true"])


async def test_a_reply_of_very_many_items_is_not_taken_apart(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.read()
        await peer.raw(b'{"return": [' + b"[]," * 500_000 + b"0]}\n")

    async with serving(path, as_agent(script)):
        with pytest.raises(AgentError, match="nonsense"):
            await agent.request("guest-get-osinfo")
