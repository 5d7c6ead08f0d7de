"""A short look at a monitor that is slow, busy, talkative or gone."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from fake_qmp import GREETING, Peer, serving

from qemuctl.errors import CommandError, QmpError, WaitTimeout
from qemuctl.qmp.commands import QueryBalloon, QueryStatus
from qemuctl.qmp.glance import glance
from qemuctl.qmp.stats import QueryBlockstats

STATUS = {"status": "running", "running": True}
COMMANDS = (QueryStatus(), QueryBalloon(), QueryBlockstats())
COUNTERS = {"rd_bytes": 1, "wr_bytes": 2, "rd_operations": 3, "wr_operations": 4,
            "flush_operations": 5}  # fmt: skip


async def test_replies_are_typed_and_in_order_whatever_comes_between(
    path: Path,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        for value in (STATUS, None, [{"qdev": "disk0", "stats": COUNTERS}]):
            command = await peer.read()
            await peer.event("RTC_CHANGE", offset=1)
            if value is None:
                await peer.refuse(command, "DeviceNotActive", "no balloon")
            else:
                await peer.reply(command, value)
        await peer.gone()

    async with serving(path, script):
        status, balloon, (disk,) = await glance(path, COMMANDS)
    assert status.status == "running"
    assert isinstance(balloon, CommandError)
    assert balloon.class_ == "DeviceNotActive"
    assert (disk.qdev, disk.stats.wr_bytes, disk.stats.flush_operations) == (
        "disk0", 2, 5,
    )  # fmt: skip


async def test_it_waits_its_turn(path: Path) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await release.wait()
        await peer.greet()
        await peer.reply(await peer.read(), STATUS)
        await peer.gone()

    async with serving(path, script):
        waiting = [asyncio.create_task(glance(path, COMMANDS[:1])) for _ in range(3)]
        await asyncio.sleep(0)
        release.set()
        for replies in await asyncio.gather(*waiting):
            assert replies[0].running


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400\r\n\r\n", b"[1, 2]\n", b"7\n"])
async def test_what_is_not_qmp_is_an_error(path: Path, said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.raw(said)

    async with serving(path, script):
        with pytest.raises(QmpError):
            await glance(path, COMMANDS)


async def test_qemu_that_ends_in_the_middle_is_an_error(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.reply(await peer.read(), STATUS)

    async with serving(path, script):
        with pytest.raises(QmpError):
            await glance(path, COMMANDS)


async def test_no_socket_and_a_full_queue_are_told_apart(path: Path) -> None:
    with pytest.raises(QmpError, match="no QMP at"):
        await glance(path, COMMANDS)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        looks = [asyncio.create_task(glance(path, COMMANDS)) for _ in range(10)]
        done, waiting = await asyncio.wait(looks, timeout=0.2)
        assert done
        assert waiting
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for task in done:
            with pytest.raises(WaitTimeout, match="queue"):
                task.result()


async def test_a_look_that_is_given_up_leaves_no_socket(path: Path) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.send(GREETING)
        await peer.gone()
        gone.set()

    async with serving(path, script):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await glance(path, COMMANDS)
        async with asyncio.timeout(60):
            await gone.wait()
