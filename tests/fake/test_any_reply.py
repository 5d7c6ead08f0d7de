"""Agents and monitors that answer anything: an error at most, and soon."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import pkgutil
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import AgentPeer, as_agent
from fake_qmp import Peer, serving
from hypothesis import given
from hypothesis import strategies as st

import qemuctl.qmp
from qemuctl.errors import QemuctlError
from qemuctl.guest import info
from qemuctl.guest.agent import Agent
from qemuctl.guest.stream import run_streaming
from qemuctl.qmp import Session
from qemuctl.qmp.commands import Command, wire_name
from qemuctl.qmp.glance import glance
from qemuctl.templates.guest_clock import read_clock
from tests.hostile import fuzzed, trees

# Seconds for a conversation of which each reply is there at once.
ENOUGH = 20.0
KEYS = st.sampled_from([
    "return", "error", "desc", "class", "id", "pid", "exited", "exitcode", "signal",
    "out-data", "err-data", "count", "buf-b64", "eof", "name", "ip-addresses",
    "ip-address", "prefix", "hardware-address", "mountpoint", "type", "total-bytes",
    "used-bytes", "disk", "user", "login-time", "host-name", "pretty-name", "event",
    "data", "timestamp", "seconds", "microseconds", "QMP", "version", "capabilities",
])  # fmt: skip
VALUES = trees(KEYS)
LINES = (
    VALUES.map(lambda value: json.dumps({"return": value}).encode())
    | VALUES.map(lambda value: json.dumps({"error": value}).encode())
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
    | st.sampled_from(
        [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xff", b'{"return":1e999}']
    )
)


async def _streamed(agent: Agent) -> None:
    await run_streaming(
        agent, ["x"], stdin=None, stdout=lambda _: None, stderr=lambda _: None
    )


ASKING: dict[str, Callable[[Agent], Awaitable[Any]]] = {
    "look": info.look,
    "interfaces": info.interfaces,
    "run": lambda agent: agent.run(["x"]),
    "clock": read_clock,
    "streamed": _streamed,
}


async def _executed(path: Path, command: Command[Any]) -> None:
    session = await Session.connect(path)
    try:
        await session.execute(command)
    finally:
        await session.close()


@contextlib.contextmanager
def socket_path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="q"))
    try:
        yield folder / "socket"
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
@fuzzed(25)
@given(lines=st.lists(LINES, min_size=1, max_size=6))
def test_any_reply_of_an_agent_is_an_error_at_most(
    ask: Callable[[Agent], Awaitable[Any]], lines: list[bytes]
) -> None:
    left = iter(lines)

    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        for line in left:
            await peer.read()
            await peer.raw(line.replace(b"\n", b"") + b"\n")

    async def converse(path: Path) -> None:
        async with serving(path, as_agent(script)), asyncio.timeout(ENOUGH):
            agent = Agent(path)
            with contextlib.suppress(QemuctlError):
                await ask(agent)
            agent.release()

    with socket_path() as path:
        asyncio.run(converse(path))


def commands() -> Iterator[Command[Any]]:
    """Each command that can be made without arguments."""
    for module in pkgutil.iter_modules(qemuctl.qmp.__path__, "qemuctl.qmp."):
        importlib.import_module(module.name)
    left = list(Command.__subclasses__())
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if hasattr(kind, "NAME"):
            with contextlib.suppress(TypeError):
                yield kind()


COMMANDS = sorted(commands(), key=lambda one: one.NAME)


def replies(command: Command[Any]) -> st.SearchStrategy[Any]:
    """Return values that often have the members of the honest one."""
    if command.REPLY is None:
        return VALUES
    names = [wire_name(field.name) for field in dataclasses.fields(command.REPLY)]
    honest = st.fixed_dictionaries(
        {}, optional=dict.fromkeys(names, VALUES)
    ) | st.fixed_dictionaries(dict.fromkeys(names, VALUES))
    return honest | st.lists(honest, max_size=3) | VALUES


ANSWERS = st.sampled_from(COMMANDS).flatmap(
    lambda command: st.tuples(st.just(command), replies(command))
)


@fuzzed(100)
@given(ANSWERS, st.sampled_from(["return", "error"]), VALUES)
def test_any_return_value_of_a_monitor_is_an_error_at_most(
    answer: tuple[Command[Any], Any], key: str, event: Any
) -> None:
    command, value = answer

    async def script(peer: Peer) -> None:
        await peer.greet()
        request = await peer.read()
        await peer.send({"event": "X", "data": event, "timestamp": event})
        await peer.send({key: value, "id": request["id"]})
        await peer.gone()

    async def converse(path: Path) -> None:
        async with serving(path, script), asyncio.timeout(ENOUGH):
            with contextlib.suppress(QemuctlError):
                await glance(path, (command,))
            with contextlib.suppress(QemuctlError):
                await _executed(path, command)

    with socket_path() as path:
        asyncio.run(converse(path))


@fuzzed(60)
@given(st.lists(LINES, min_size=1, max_size=4), st.booleans())
def test_any_line_of_a_monitor_is_an_error_at_most(
    lines: list[bytes], greets: bool
) -> None:
    async def script(peer: Peer) -> None:
        if greets:
            await peer.greet()
        for line in lines:
            await peer.raw(line.replace(b"\n", b"") + b"\r\n")

    async def converse(path: Path) -> None:
        async with serving(path, script), asyncio.timeout(ENOUGH):
            with contextlib.suppress(QemuctlError):
                await glance(path, COMMANDS[:2])
            with contextlib.suppress(QemuctlError):
                await _executed(path, COMMANDS[0])

    with socket_path() as path:
        asyncio.run(converse(path))
