"""Freezing a guest's file systems: whatever its agent does, they are thawed again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_agent import EXITED, SYNC, AgentPeer, FakeGuest, as_agent
from fake_qmp import serving
from fake_vm import fake_vm

from qemuctl.errors import AgentError
from qemuctl.power import guest_clock
from qemuctl.power.guest_clock import set_clock
from qemuctl.snapshots import guest as snapshot_guest
from qemuctl.snapshots.guest import frozen
from qemuctl.vm.vm import Vm

SHORT = 0.2
VERBS = ("freeze", "thaw", "status")


class Freezer:
    """An agent with file systems; what is in ``mute`` is done and not answered, what
    is in ``refused`` is neither."""

    def __init__(self, *, mute: str = "", refused: str = "", without: str = "") -> None:
        self.is_frozen = False
        self.mute, self.refused, self.without = mute, refused, without
        self.seen: list[str] = []

    async def __call__(self, peer: AgentPeer) -> None:
        with contextlib.suppress(EOFError):
            while True:
                request = await peer.read()
                if request["execute"] == SYNC:
                    value = json.dumps({"return": request["arguments"]["id"]})
                    await peer.raw(b"\xff" + value.encode() + b"\n")
                    continue
                verb = request["execute"].rpartition("-")[2]
                self.seen.append(verb)
                await self._answer(peer, verb)

    async def _answer(self, peer: AgentPeer, verb: str) -> None:
        if verb in self.refused.split():
            error = {"class": "GenericError", "desc": "no"}
            await peer.raw(json.dumps({"error": error}).encode() + b"\n")
            return
        value: Any = 1
        if verb == "info":
            names = [f"guest-fsfreeze-{each}" for each in VERBS if each != self.without]
            commands = [{"name": name, "enabled": True} for name in names]
            value = {"supported_commands": commands}
        elif verb == "status":
            value = "frozen" if self.is_frozen else "thawed"
        else:
            self.is_frozen = verb == "freeze"
        if verb not in self.mute.split():
            await peer.raw(json.dumps({"return": value}).encode() + b"\n")


@contextlib.asynccontextmanager
async def guest(agent: Any, *, port_open: bool = True) -> AsyncIterator[Vm]:
    async with fake_vm("name: fake\n") as (vm, qemu):
        if port_open:
            qemu.event("VSERPORT_CHANGE", id="agent", open=True)
        async with serving(vm.paths.agent_socket, as_agent(agent)):
            yield vm
            vm.agent.release()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PATIENCE", "_PORT_PATIENCE"):
        monkeypatch.setattr(guest_clock, name, SHORT)
    for name in ("_PATIENCE", "_FREEZING"):
        monkeypatch.setattr(snapshot_guest, name, SHORT)
    monkeypatch.setattr(snapshot_guest, "_THAWING", 1.0)
    monkeypatch.setattr(snapshot_guest, "_ASK_EVERY", 0.01)


async def test_it_is_frozen_for_the_block_and_no_longer() -> None:
    freezer = Freezer()
    async with guest(freezer) as vm, frozen(vm) as still:
        assert still
        assert freezer.is_frozen
    assert not freezer.is_frozen
    assert freezer.seen == ["info", "freeze", "thaw", "status"]


async def test_what_fails_in_between_leaves_it_thawed() -> None:
    freezer = Freezer()
    async with guest(freezer) as vm:
        with pytest.raises(ZeroDivisionError):
            async with frozen(vm):
                raise ZeroDivisionError
        assert not freezer.is_frozen


async def test_who_is_cut_off_leaves_it_thawed() -> None:
    freezer = Freezer()
    inside = asyncio.Event()
    async with guest(freezer) as vm:

        async def work() -> None:
            async with frozen(vm):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await inside.wait()
        assert freezer.is_frozen
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not freezer.is_frozen


async def test_a_lost_reply_is_asked_after() -> None:
    freezer = Freezer(mute="freeze")
    async with guest(freezer) as vm, frozen(vm) as still:
        assert still
        assert freezer.seen[-1] == "status"
    assert not freezer.is_frozen


async def test_a_lost_reply_to_the_thaw_is_asked_after() -> None:
    freezer = Freezer(mute="thaw")
    async with guest(freezer) as vm, frozen(vm):
        pass
    assert not freezer.is_frozen
    assert freezer.seen[-2:] == ["thaw", "status"]


async def test_who_refuses_to_freeze_is_not_frozen() -> None:
    freezer = Freezer(refused="freeze")
    async with guest(freezer) as vm, frozen(vm) as still:
        assert not still


async def test_one_that_does_not_thaw_is_told() -> None:
    freezer = Freezer(refused="thaw")
    async with guest(freezer) as vm:
        with pytest.raises(AgentError, match="may still be frozen") as caught:
            async with frozen(vm):
                pass
        assert "qemuctl reset fake" in str(caught.value.hint)


@pytest.mark.parametrize("without", VERBS)
async def test_an_agent_that_does_not_offer_it_is_not_asked(without: str) -> None:
    freezer = Freezer(without=without)
    async with guest(freezer) as vm, frozen(vm) as still:
        assert not still
    assert freezer.seen == ["info"]


async def test_nobody_is_asked_who_is_not_there() -> None:
    freezer = Freezer()
    async with guest(freezer, port_open=False) as vm, frozen(vm) as still:
        assert not still
    assert freezer.seen == []


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"guest-exec": [{"pid": 1}], "guest-exec-status": [EXITED]}, None),
        ({"guest-exec": [Exception]}, "the guest agent refused guest-exec: no"),
        (
            {
                "guest-exec": [{"pid": 1}],
                "guest-exec-status": [
                    {"exited": True, "exitcode": 1, "err-data": "bm8="}
                ],
            },
            "no",
        ),
    ],
)
async def test_a_clock_that_is_not_set_is_told(
    answers: dict[str, list[Any]], problem: str | None
) -> None:
    async with guest(FakeGuest(answers)) as vm:
        assert await set_clock(vm) == problem


async def test_a_clock_without_an_agent_is_told() -> None:
    async with guest(FakeGuest({}), port_open=False) as vm:
        assert await set_clock(vm) == "its agent is not there"
