"""The QMP session against a server that gives odd replies."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_qmp import Peer, serving

from qemuctl.errors import CommandError, MonitorLost, QmpError, WaitTimeout
from qemuctl.qmp import Event, Recorder, Session
from qemuctl.qmp.commands import QueryChardev, QueryStatus
from qemuctl.qmp.screen import SendKey

TIMEOUT = 60.0
SHORT = 0.05


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path, whose length does not leave room for a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="q"))
    yield folder / "monitor"
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_descriptor_is_lost() -> Iterator[None]:
    folder = Path("/proc/self/fd")
    before = sorted(folder.iterdir())
    yield
    assert sorted(folder.iterdir()) == before


async def idle(peer: Peer) -> None:
    await peer.greet()
    await peer.gone()


async def test_a_command_gets_its_return_value(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        command = await peer.read()
        assert command["execute"] == "query-status"
        assert "arguments" not in command
        await peer.reply(command, {"status": "running", "running": True, "new": 1})
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        info = await session.execute(QueryStatus())
        assert (info.status, info.running) == ("running", True)
        assert not session.lost
        await session.close()
        assert session.lost


async def test_what_is_private_goes_out_and_is_not_written_down(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        command = await peer.read()
        assert command["arguments"]["keys"] == [{"type": "qcode", "data": "x"}]
        await peer.reply(command)
        await peer.gone()

    async with serving(path, script):
        log = path.with_name("log")
        session = await Session.connect(path, recorder=Recorder(log))
        key = SendKey(keys=[{"type": "qcode", "data": "x"}])
        await session.execute(key, private=True)
        await session.close()
        first, reply = map(json.loads, log.read_text().splitlines())
        assert (first["execute"], first["arguments"]) == ("send-key", "…")
        assert reply["reply"] == "send-key"


async def test_a_list_is_typed_item_by_item(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        item = {"label": "a", "filename": "b", "frontend-open": True}
        await peer.reply(await peer.read(), [item, item])
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        assert [i.frontend_open for i in await session.execute(QueryChardev())] == [
            True,
            True,
        ]
        await session.close()


async def test_an_error_reply_has_qemus_class_and_words(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.refuse(await peer.read(), "DeviceNotFound", "Device 'x' not found")
        await peer.reply(await peer.read())
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        with pytest.raises(CommandError) as caught:
            await session.command("device_del", {"id": "x"})
        error = caught.value
        assert error.command == "device_del"
        assert (error.class_, error.desc) == ("DeviceNotFound", "Device 'x' not found")
        assert str(error) == "QEMU refused device_del: Device 'x' not found"
        assert await session.command("stop") == {}
        await session.close()


async def test_a_late_reply_is_never_taken_for_the_next_command(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        late = await peer.read()
        second = await peer.read()
        await peer.reply(late, {"answer": "late"})
        await peer.reply(second, {"answer": "second"})
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        with pytest.raises(WaitTimeout) as caught:
            await session.command("query-block", timeout=SHORT)
        assert caught.value.stage == "QEMU's reply to query-block"
        assert await session.command("query-name") == {"answer": "second"}
        assert not session.lost
        await session.close()


async def test_a_late_error_is_never_taken_for_the_next_command(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        late = await peer.read()
        second = await peer.read()
        await peer.refuse(late, "GenericError", "too late")
        await peer.reply(second, {"answer": "second"})
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        with pytest.raises(WaitTimeout):
            await session.command("query-block", timeout=SHORT)
        assert await session.command("query-name") == {"answer": "second"}
        await session.close()


async def test_replies_in_another_order_find_their_commands(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        commands = [await peer.read() for _ in range(3)]
        for command in reversed(commands):
            await peer.reply(command, {"to": command["execute"]})
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        names = ["one", "two", "three"]
        async with asyncio.timeout(TIMEOUT):
            replies = await asyncio.gather(*map(session.command, names))
        assert [reply["to"] for reply in replies] == names
        await session.close()


async def test_a_connection_lost_in_a_command_leaves_its_outcome_unknown(
    path: Path,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.read()

    async with serving(path, script):
        session = await Session.connect(path)
        with pytest.raises(MonitorLost, match="during stop: outcome unknown"):
            await session.command("stop", timeout=TIMEOUT)
        assert session.lost
        await session.ended()
        with pytest.raises(MonitorLost):
            await session.command("cont", timeout=TIMEOUT)
        await session.close()


@pytest.mark.parametrize(
    "rubbish",
    [
        b"rubbish\r\n",
        b"\xff\xfe\x00\r\n",
        b"[]\r\n",
        b"5\r\n",
        b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n',
        b'{"return": \r\n',
        b"x" * (11 * 1024 * 1024),
    ],
    ids=["text", "binary", "list", "number", "no id", "cut", "huge"],
)
async def test_rubbish_ends_the_connection_and_is_no_reply(
    path: Path, rubbish: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.read()
        await peer.raw(rubbish)
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        with pytest.raises(MonitorLost):
            await session.command("stop", timeout=TIMEOUT)
        await session.ended()
        await session.close()


@pytest.mark.parametrize(
    "reply",
    [{}, {"error": {}}, {"error": "no"}, {"error": {"class": "A"}}],
    ids=["nothing", "empty error", "text error", "no words"],
)
async def test_a_reply_that_makes_no_sense_is_an_error(
    path: Path, reply: dict[str, Any]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        command = await peer.read()
        await peer.send(reply | {"id": command["id"]})
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        with pytest.raises(QmpError, match="stop"):
            await session.command("stop", timeout=TIMEOUT)
        await session.close()


async def test_replies_with_an_unknown_id_are_dropped(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        command = await peer.read()
        await peer.send({"return": {"answer": "other"}, "id": "somebody else's"})
        await peer.reply(command, {"answer": "mine"})
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        assert await session.command("query-name") == {"answer": "mine"}
        await session.close()


async def test_no_greeting_in_time_is_a_time_out(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()

    async with serving(path, script):
        with pytest.raises(WaitTimeout) as caught:
            await Session.connect(path, timeout=SHORT)
    assert caught.value.stage == "QEMU's QMP greeting"


async def test_a_greeting_without_negotiation_is_a_time_out(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.send({"QMP": {"version": {}, "capabilities": []}})
        await peer.gone()

    async with serving(path, script):
        with pytest.raises(WaitTimeout):
            await Session.connect(path, timeout=SHORT)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n", b"{}\r\n", b'{"QMP": 1}\r\n'])
async def test_what_is_not_qmp_is_an_error_with_a_reason(
    path: Path, said: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.raw(said)

    async with serving(path, script):
        with pytest.raises(QmpError, match=r"no QMP at .*: \S") as caught:
            await Session.connect(path, timeout=TIMEOUT)
    assert not isinstance(caught.value, (CommandError, MonitorLost))


async def test_nobody_who_listens_is_an_error(path: Path) -> None:
    with pytest.raises(QmpError, match=f"no QMP at {path}: .*No such file"):
        await Session.connect(path)


async def test_a_failed_connection_closes_its_recorder(path: Path) -> None:
    for _ in range(3):
        with pytest.raises(QmpError):
            await Session.connect(path, recorder=Recorder(path.with_name("qmp.jsonl")))


async def test_a_second_client_waits_for_its_turn(path: Path) -> None:
    async with serving(path, idle):
        first = await Session.connect(path)
        second = asyncio.create_task(Session.connect(path, timeout=TIMEOUT))
        with pytest.raises(WaitTimeout):
            await Session.connect(path, timeout=SHORT)
        assert not second.done()
        await first.close()
        session = await second
        assert not session.lost
        await session.close()


async def test_an_event_before_the_reply_is_not_lost(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        command = await peer.read()
        await peer.event("RESUME")
        await peer.event("STOP")
        await peer.reply(command)
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        with session.listen("STOP") as stops, session.listen() as everything:
            await session.command("stop")
            async with asyncio.timeout(TIMEOUT):
                assert (await stops.get()) == Event("STOP", {}, 1.0)
                names = [(await everything.get()).name for _ in range(2)]
                assert names == ["RESUME", "STOP"]
        await session.close()


async def test_a_listener_sees_the_end_of_the_connection(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.reply(await peer.read())
        await peer.event("SHUTDOWN", guest=True)

    async with serving(path, script):
        session = await Session.connect(path)
        with session.listen() as events:
            await session.command("quit")
            async with asyncio.timeout(TIMEOUT):
                assert [event.name async for event in events] == ["SHUTDOWN"]
                for _ in range(2):
                    with pytest.raises(MonitorLost):
                        await events.get()
        with session.listen() as late:
            async with asyncio.timeout(TIMEOUT):
                with pytest.raises(MonitorLost):
                    await late.get()
        await session.close()


async def test_an_event_that_makes_no_sense_does_not_end_the_listener(
    path: Path,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        command = await peer.read()
        await peer.send({"event": 5})
        await peer.send({"event": None, "data": {}})
        await peer.event("STOP")
        await peer.reply(command)
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        with session.listen() as events:
            await session.command("stop", timeout=TIMEOUT)
            async with asyncio.timeout(TIMEOUT):
                assert (await events.get()).name == "STOP"
        await session.close()


async def test_events_that_nobody_wants_are_not_kept(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        command = await peer.read()
        for number in range(1000):
            await peer.event("RTC_CHANGE", offset=number)
        await peer.reply(command)
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        await session.command("query-name")
        assert session._client.events.empty()
        assert session._client.events.history == ()
        await session.close()


async def test_a_command_that_is_cancelled_leaves_the_session_whole(
    path: Path,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        cancelled = await peer.read()
        second = await peer.read()
        await peer.reply(cancelled, {"answer": "cancelled"})
        await peer.reply(second, {"answer": "second"})
        await peer.gone()

    async with serving(path, script):
        session = await Session.connect(path)
        task = asyncio.create_task(session.command("query-block", timeout=None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await session.command("query-name") == {"answer": "second"}
        await session.close()


async def test_closing_twice_or_after_the_end_is_no_error(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.read()

    async with serving(path, script):
        session = await Session.connect(path)
        with pytest.raises(MonitorLost):
            await session.command("quit", timeout=TIMEOUT)
        async with asyncio.timeout(TIMEOUT):
            await session.ended()
        await session.close()
        await session.close()


async def test_a_qemu_that_ends_right_after_the_greeting_is_an_error(
    path: Path,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()

    async with serving(path, script):
        with pytest.raises(QmpError, match=r"no QMP at .*: it hung up"):
            await Session.connect(path, timeout=TIMEOUT)


async def test_the_recorder_has_commands_replies_and_failures(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.reply(await peer.read(), {"a": 1})
        await peer.refuse(await peer.read(), "GenericError", "no")
        await peer.read()
        await peer.gone()

    log = path.with_name("qmp.jsonl")
    async with serving(path, script):
        session = await Session.connect(path, recorder=Recorder(log))
        await session.command("one", {"x": 1})
        with pytest.raises(CommandError):
            await session.command("two")
        with pytest.raises(WaitTimeout):
            await session.command("three", timeout=SHORT)
        await session.close()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    for entry in entries:
        entry.pop("at")
        entry.pop("ms", None)
    assert entries == [
        {"execute": "one", "arguments": {"x": 1}},
        {"reply": "one", "value": {"a": 1}},
        {"execute": "two", "arguments": None},
        {"reply": "two", "error": "QEMU refused two: no"},
        {"execute": "three", "arguments": None},
        {
            "reply": "three",
            "error": "timed out after 0.05 s: waiting for QEMU's reply to three",
        },
    ]


def test_to_close_it_is_not_cut_short(path: Path) -> None:
    """The end of a program that is interrupted while it closes one tells nothing."""
    listening, over, told = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with serving(path, idle):
            listening.set()
            await asyncio.to_thread(over.wait)

    async def close() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, it: told.append(it))
        session = await Session.connect(path)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await session.close()

    server = threading.Thread(target=asyncio.run, args=(serve(),))
    server.start()
    try:
        assert listening.wait(TIMEOUT)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(close())
    finally:
        over.set()
        server.join()
    assert told == []
