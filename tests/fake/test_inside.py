"""What a guest tells about itself, of guests that hang, lie and send rubbish."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from fake_agent import AgentPeer, FakeGuest, as_agent
from fake_qmp import serving

from qemuctl.errors import AgentError, WaitTimeout
from qemuctl.guest.agent import Agent
from qemuctl.guest.info import MOST, FileSystem, Guest, Interface, User, look

HONEST: dict[str, list[Any]] = {
    "guest-get-osinfo": [
        {"pretty-name": "Debian 12", "kernel-release": "6.1.0", "machine": "x86_64"}
    ],
    "guest-get-host-name": [{"host-name": "web"}],
    "guest-network-get-interfaces": [
        [
            {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
            {
                "name": "eth0",
                "hardware-address": "52:54:00:00:00:01",
                "ip-addresses": [
                    {"ip-address": "10.0.2.15", "prefix": 24},
                    {"ip-address": "fe80::1", "prefix": 64},
                ],
            },
            {"name": "eth1"},
        ]
    ],
    "guest-get-users": [[{"user": "root", "login-time": 1700000000.5}]],
    "guest-get-fsinfo": [
        [
            {"mountpoint": "/", "type": "ext4", "name": "vda1", "disk": [],
             "total-bytes": 100, "used-bytes": 40},
            {"mountpoint": "/old", "type": "vfat", "name": "vdb", "disk": []},
        ]
    ],
}  # fmt: skip


async def test_all_that_an_honest_guest_tells(path: Path, agent: Agent) -> None:
    async with serving(path, as_agent(FakeGuest(HONEST))):
        guest = await look(agent)
        agent.release()
    assert (guest.os, guest.kernel, guest.architecture) == (
        "Debian 12", "6.1.0", "x86_64",
    )  # fmt: skip
    assert guest.host_name == "web"
    assert guest.addresses == ("10.0.2.15/24",)
    assert guest.interfaces is not None
    assert guest.interfaces[2] == Interface(name="eth1")
    assert guest.users == (User(name="root", login_at=1700000000.5),)
    assert guest.file_systems == (
        FileSystem(mount_point="/", type="ext4", device="vda1", size_bytes=100,
                   used_bytes=40),
        FileSystem(mount_point="/old", type="vfat", device="vdb"),
    )  # fmt: skip


@pytest.mark.parametrize("missing", HONEST)
async def test_what_the_agent_refuses_is_left_out(
    path: Path, agent: Agent, missing: str
) -> None:
    async with serving(path, as_agent(FakeGuest(HONEST | {missing: [Exception]}))):
        guest = await look(agent)
        agent.release()
    told = [value for value in vars(guest).values() if value is not None]
    assert len(told) == (4 if missing == "guest-get-osinfo" else 6)


async def test_an_agent_that_refuses_everything_has_answered(
    path: Path, agent: Agent
) -> None:
    async with serving(path, as_agent(FakeGuest({x: [Exception] for x in HONEST}))):
        assert await look(agent) == Guest()
        agent.release()


NONSENSE: list[Any] = [
    None,
    7,
    "text",
    [],
    {},
    [[]],
    [7],
    [{}],
    {"host-name": 7, "name": {}, "pretty-name": []},
    {"host-name": None},
    [{"name": 7, "user": 7, "mountpoint": 7}],
    [{"name": "e", "user": "u", "mountpoint": "/", "type": None}],
    [{"name": "e", "ip-addresses": [{"ip-address": "1", "prefix": float("inf")}],
      "user": "u", "login-time": float("nan"), "mountpoint": "/", "type": "x",
      "total-bytes": 10**400}],
    [{"name": "e", "ip-addresses": 7, "user": "u", "login-time": 10**400,
      "mountpoint": "/", "type": "x", "used-bytes": -1}],
    [{"name": "e", "ip-addresses": [{"ip-address": "1", "prefix": 10**400}],
      "user": "u", "login-time": 1e300, "mountpoint": "/", "type": "x",
      "used-bytes": 1.5}],
]  # fmt: skip


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:40])
async def test_nonsense_never_gets_through(
    path: Path, agent: Agent, value: Any
) -> None:
    async with serving(path, as_agent(FakeGuest({x: [value] for x in HONEST}))):
        try:
            guest = await look(agent)
        except AgentError as error:
            assert "makes no sense" in str(error)  # noqa: PT017
        else:
            assert guest.os is None
            assert guest.host_name is None
            assert not guest.file_systems
        agent.release()


async def test_what_a_guest_says_is_cut_and_has_no_control_characters(
    path: Path, agent: Agent
) -> None:
    wild = {
        "guest-get-osinfo": [
            {"pretty-name": "\x1b[2J\x07Deb\nian \u202e" + "x" * 9999}
        ],
        "guest-get-users": [[{"user": f"u{n}"} for n in range(1000)]],
    }
    async with serving(path, as_agent(FakeGuest(HONEST | wild))):
        guest = await look(agent)
        agent.release()
    assert guest.os is not None
    assert guest.os.startswith("Deb ian x")
    assert len(guest.os) <= 200
    assert guest.users is not None
    assert len(guest.users) == MOST


async def test_a_silent_agent_takes_no_more_than_the_budget(
    path: Path, agent: Agent
) -> None:
    async with serving(path, as_agent(AgentPeer.gone)):
        started = time.monotonic()
        with pytest.raises(WaitTimeout):
            await look(agent, 0.2)
        assert time.monotonic() - started < 20


async def test_one_that_hangs_half_way_has_told_the_first_half(
    path: Path, agent: Agent
) -> None:
    async def script(peer: AgentPeer) -> None:
        await peer.sync()
        await peer.answer(HONEST["guest-get-osinfo"][0])
        await peer.answer(HONEST["guest-get-host-name"][0])
        await asyncio.Event().wait()

    async with serving(path, as_agent(script)):
        guest = await look(agent, 0.5)
    assert (guest.os, guest.host_name) == ("Debian 12", "web")
    assert guest.interfaces is guest.users is guest.file_systems is None
