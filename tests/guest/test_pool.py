"""Warm pools: of one process, and shared by many."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl import paths
from qemuctl.errors import HostError, StateError, TemplateError
from qemuctl.pool import Pool
from qemuctl.pool.pace import Pace
from qemuctl.registry.template import Template, kept_files
from qemuctl.spec import Forward
from qemuctl.templates.catalog import find
from qemuctl.templates.fresh_vm import fresh
from tests.conftest import survivors
from tests.guest.conftest import Home

Until = Callable[..., Any]
WHO = "cat /proc/sys/kernel/hostname /sys/class/net/eth0/address; date +%s; "
WHO += "head -c 16 /dev/urandom | od -An -tx1"


@pytest.fixture(scope="module")
def made(shared: Home) -> Home:
    """A home that has the template t."""
    shared.run(
        "template", "create", "t", "--image", "tiny", "--memory", "256M", timeout=150
    )
    return shared


@pytest.fixture
def template(made: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Template]:
    """The template; its home is that of the library, and is empty afterwards."""
    monkeypatch.setenv("QEMUCTL_HOME", str(made.path))
    yield find("t")
    assert left(made) == []


@pytest.fixture
def pool(made: Home, template: Template, until: Until) -> Iterator[Callable[..., int]]:
    """`pool(size)`: starts the shared pool of t, and gives its process's id."""

    def start(size: int = 1) -> int:
        made.run("pool", "start", "t", "--size", size)
        return int(json.loads(paths.PoolPaths("t").lock.read_text())["pid"])

    yield start
    made.run("pool", "stop", "t", check=None)
    until(lambda: left(made) == [], timeout=60)


def left(home: Home) -> list[str]:
    """Everything that pools and their forks might leave."""
    found = [str(path) for path in (home.path / "state/vms").glob("*")]
    found += [str(path) for path in paths.run_home().glob("*")]
    return found + [str(process) for process in survivors(home.path)]


def status(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(home.text("pool", "status", "t", "--json"))[0]
    return found


def vms(home: Home) -> dict[str, dict[str, Any]]:
    return {vm["name"]: vm for vm in json.loads(home.text("ls", "--json"))}


async def filled(pool: Pool) -> None:
    """Waits until as many are parked as shall be."""
    await reached(lambda: pool.status().parked == pool.size)


async def reached(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    """Waits for a condition without holding up the pool, which tells no event."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# -- in one process --------------------------------------------------------


async def test_each_that_is_taken_is_another_machine(template: Template) -> None:
    async with Pool(template, size=2) as pool:
        await filled(pool)
        taken = await asyncio.gather(*(pool.take() for _ in range(6)))
        told = [(await each.vm.agent.run(["sh", "-c", WHO])).text for each in taken]
        now = time.time()
        hosts, macs, dates, random = zip(
            *(one.split("\n") for one in told), strict=True
        )
        assert set(hosts) == {each.vm.name for each in taken}
        assert len(set(hosts)) == len(set(macs)) == len(set(random)) == 6
        assert all(abs(now - int(date)) < 10 for date in dates)
        assert pool.status().handed_out == 6
        await filled(pool)
        assert pool.status().started == 8
        await asyncio.gather(*(each.end() for each in taken))
        assert pool.status().parked == 2
        async with pool.take() as vm:
            assert (await vm.agent.run(["echo", "ok"])).text == "ok"
        assert not vm.paths.state.exists()


async def test_a_parked_fork_that_dies_is_replaced(
    made: Home, template: Template
) -> None:
    async with Pool(template, size=2) as pool:
        await filled(pool)
        first, second = vms(made).values()
        assert (first["state"], first["throwaway"]) == ("paused", True)
        assert pool.status().memory > 0
        os.kill(first["pid"], signal.SIGKILL)
        made.run("kill", second["name"])
        await reached(lambda: pool.status().deaths == 2)
        async with pool.take() as vm:
            assert vm.name not in (first["name"], second["name"])
            assert (await vm.agent.run(["echo", "ok"])).text == "ok"
        await filled(pool)
        assert len(vms(made)) == 2


async def test_short_of_memory_none_is_parked_but_one_can_be_had(
    template: Template,
) -> None:
    async with Pool(template, size=2, pace=Pace(reserve=1 << 60)) as pool:
        with pytest.raises(HostError, match="too little memory"):
            await pool.ready()
        async with pool.take() as vm:
            assert (await vm.agent.run(["echo", "ok"])).text == "ok"
        state = pool.status()
        assert (state.parked, state.started) == (0, 1)
        assert state.problem is not None


async def test_a_template_that_cannot_be_used_any_more_is_told(
    template: Template,
) -> None:
    other = template.folder.with_name("other")
    try:
        shutil.copytree(template.folder, other)  # which gives its files another time
        async with Pool(find("other"), size=2) as pool:
            with pytest.raises(TemplateError, match="was changed since it was made"):
                await pool.ready()
            with pytest.raises(TemplateError, match="was changed since it was made"):
                await pool.take()
            shutil.rmtree(other)
            with pytest.raises(TemplateError, match="it was removed"):
                await pool.take()
    finally:
        shutil.rmtree(other, ignore_errors=True)


async def test_a_template_that_is_made_again_is_what_the_next_fork_is_made_from(
    template: Template,
) -> None:
    other = template.folder.with_name("other")
    try:
        other.mkdir()
        first = made_again(template, other, "1111aaaa")
        async with Pool(first, size=1) as pool:
            await pool.ready()
            second = made_again(first, other, "2222bbbb")
            shutil.rmtree(first.content)
            async with pool.take() as vm:
                assert str(second.ram) in " ".join(vm.record.argv)
                assert (await vm.agent.run(["echo", "ok"])).text == "ok"
            assert (pool.status().deaths, pool.template) == (0, second)
    finally:
        shutil.rmtree(other)


def made_again(template: Template, folder: Path, making: str) -> Template:
    """The same template in another folder, as another making of it."""
    shutil.copytree(template.content, folder / making)
    files = kept_files(folder / making)
    replace(template, folder=folder, making=making, files=files).write()
    return find(folder.name)


async def test_who_waits_when_the_pool_ends_hears_of_it(template: Template) -> None:
    async with Pool(template, size=1) as pool:
        waiting = asyncio.gather(*(pool.take() for _ in range(3)))
        await asyncio.sleep(0)
        called_off = asyncio.ensure_future(pool._next())
        await asyncio.sleep(0)
        called_off.cancel()
    with pytest.raises(StateError, match="the pool has ended"):
        await waiting
    with pytest.raises(StateError, match="the pool has ended"):
        await pool.take()


# -- shared ----------------------------------------------------------------


def test_two_clients_at_once_get_two_forks_of_a_shared_pool(
    made: Home, pool: Callable[..., int], until: Until
) -> None:
    pool(2)
    until(lambda: status(made)["parked"] == 2)
    parked = set(vms(made))
    clients = [
        made.popen(*words, "cat", "/proc/sys/kernel/hostname", stdout=subprocess.PIPE)
        for words in (["fork", "t", "--"], ["run", "--template", "t", "--"])
    ]
    told = {client.communicate(timeout=60)[0].decode().strip() for client in clients}
    assert told == parked
    assert [client.returncode for client in clients] == [0, 0]
    now = status(made)
    assert (now["handed_out"], now["deaths"], now["size"]) == (2, 0, 2)
    # One of another size, or a second one, is not started behind anybody's back.
    assert "already" in made.words("pool", "start", "t", "--size", "2")
    assert "another size: 2" in made.words("pool", "start", "t", check=1)
    assert "a pool keeps forks" in made.words("template", "rm", "t", check=1)
    assert "t " in made.text("pool", "status")
    until(lambda: status(made)["parked"] == 2, timeout=60)
    made.run("pool", "stop", "t")
    assert left(made) == []
    assert "none runs" in made.words("pool", "status", "t", check=1)
    assert "none runs" in made.words("pool", "stop", "t", check=1)


def test_forks_die_with_a_killed_pool_and_those_taken_do_not(
    made: Home,
    pool: Callable[..., int],
    until: Until,
    processes: list[subprocess.Popen[bytes]],
) -> None:
    server = pool(1)
    holder = made.popen(
        "fork", "t", "--", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    processes.append(holder)
    assert holder.stdin is not None
    until(lambda: [vm["state"] for vm in vms(made).values()].count("running") == 1)
    until(lambda: status(made)["parked"] == 1, timeout=60)
    taken = [name for name, vm in vms(made).items() if vm["state"] == "running"]
    os.kill(server, signal.SIGKILL)
    until(lambda: list(vms(made)) == taken)
    assert "none runs" in made.words("pool", "status", "t", check=1)
    # Without a pool it is as if there had never been one, and the next one starts.
    assert made.text("fork", "t", "--", "echo", "alone") == "alone\n"
    assert pool(1) != server
    out, _ = holder.communicate(b"still here\n", timeout=60)
    assert (out, holder.returncode) == (b"still here\n", 0)
    assert taken[0] not in vms(made)


def test_a_fork_dies_with_whoever_took_it_and_the_pool_goes_on(
    made: Home,
    pool: Callable[..., int],
    until: Until,
    processes: list[subprocess.Popen[bytes]],
) -> None:
    server = pool(1)
    (name,) = vms(made)
    holder = made.popen("fork", "t", "--", "sleep", "60")
    processes.append(holder)
    until(lambda: vms(made)[name]["state"] == "running")
    record = made.path / "state/vms" / name / "process.json"
    assert json.loads(record.read_text())["owner"]["pid"] == holder.pid
    assert (record.parent / "throwaway").read_text() == str(holder.pid)
    assert name not in made.text("gc")
    holder.kill()
    until(lambda: not record.parent.exists())
    until(lambda: status(made)["parked"] == 1, timeout=60)
    assert made.text("fork", "t", "--", "echo", "on") == "on\n"
    # Its keepers were the pool's children, and none of them is a zombie now.
    zombies = ["/bin/ps", "--ppid", str(server), "-o", "stat="]
    until(lambda: b"Z" not in subprocess.run(zombies, capture_output=True).stdout)


def test_a_fork_for_somebody_who_has_gone_dies_at_once(
    made: Home, template: Template, pool: Callable[..., int], until: Until
) -> None:
    pool(1)
    for request in (b"\xff", b"[]", b'{"take": 7}', b""):
        with _connected() as client:
            client.sendall(request)
    assert list(vms(made))
    (name,) = vms(made)
    wanted = json.dumps({"take": str(template.content)}).encode()
    with _connected() as client:
        client.sendall(wanted)
        # It is on its way to us, its owner the kernel.
        assert json.loads(client.recv(4096))["name"] == name
    until(lambda: name not in vms(made))
    until(lambda: status(made)["parked"] == 1, timeout=60)
    assert status(made)["handed_out"] == 1


async def test_a_spec_of_ones_own_takes_from_the_pool_what_differs_in_its_name_alone(
    made: Home, template: Template, pool: Callable[..., int]
) -> None:
    pool(1)
    mine = template.spec.model_copy(update={"name": "mine"})
    async with fresh(mine, template="t") as vm:
        assert vm.name.startswith("t-")
        assert (await vm.agent.run(["hostname"])).text == "mine"
        assert vm.record.owner is not None
        assert vm.record.owner.pid == os.getpid()
    nic = mine.nics[0].model_copy(update={"forward": (Forward(guest_port=22),)})
    async with fresh(mine.model_copy(update={"nics": (nic,)}), template="t") as vm:
        assert vm.name.startswith("mine-")
        assert vm.record.forwards
    assert status(made)["handed_out"] == 1


def test_a_pool_that_is_stuck_keeps_nobody_waiting(
    made: Home, pool: Callable[..., int]
) -> None:
    server = pool(1)
    os.kill(server, signal.SIGSTOP)
    try:
        assert made.text("fork", "t", "--", "echo", "alone") == "alone\n"
        assert "it does not answer" in made.words("pool", "status", "t", check=1)
    finally:
        os.kill(server, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pool_that_was_not_ready_yet_is_not_left_behind(
    made: Home, template: Template, until: Until, number: signal.Signals
) -> None:
    starting = made.popen("pool", "start", "t", stderr=subprocess.PIPE)
    until(lambda: any("qemuctl.pool.server" in " ".join(p.info["cmdline"])
                      for p in survivors(made.path)))  # fmt: skip
    starting.send_signal(number)
    words = starting.communicate(timeout=60)[1].decode()
    assert starting.returncode == (130 if number is signal.SIGINT else -9), words
    # The other one of the two notices when it is ready.
    until(lambda: left(made) == [], timeout=60)
    assert "no such template" in made.words("pool", "start", "nope", check=1)


def _connected() -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(os.fspath(paths.PoolPaths("t").socket))
    return client
