"""Starting a VM, talking to it, and what its owner's process weighs."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from bench_table import Row, compare, timed
from qemu.qmp import QMPClient

import qemuctl
from qemuctl import cmdline
from qemuctl.paths import VmPaths, private_dir
from qemuctl.process import spawn
from qemuctl.qmp import Session, eventlog
from qemuctl.qmp.commands import QueryStatus
from qemuctl.registry.plan import Plan, prepare

QEMUCTL = str(Path(sys.executable).with_name("qemuctl"))
MIB = 1024 * 1024
OUTPUT = 10 * MIB  # bytes that the guest prints
QMP_BLOCK = 200  # commands in one measurement
DEFINED_VMS = 50
# Seconds between a bare script's questions; the answer is seen at once anyway,
# and a socket holds no more than some 250 questions.
AGENT_POLL = 0.05
SPEC = qemuctl.Spec(name="bench", image="tiny")


def starting(runs: int) -> Iterator[Row]:
    paths = VmPaths.of("bare")
    private_dir(paths.state)
    plan = asyncio.run(prepare(SPEC, paths))
    yield greeting(plan, 4 * runs)
    yield boot(plan, SPEC, runs)
    yield run_command(plan, max(1, runs // 2))


def talking(runs: int) -> Iterator[Row]:
    yield from asyncio.run(conversations(SPEC, runs))


def listings(runs: int) -> Iterator[Row]:
    yield from listing(SPEC, 4 * runs)


def weighing(_: int) -> Iterator[Row]:
    yield from memory()


# -- the bare side ---------------------------------------------------------------


@contextmanager
def bare_qemu(plan: Plan, *, paused: bool) -> Iterator[None]:
    """QEMU with all that ours has, but it binds its sockets itself, as it does
    for a script that only has a command line."""
    argv = cmdline.argv(plan.machine, paused=paused)
    for element in plan.machine.recorder:
        argv += element.arguments()
    private_dir(plan.paths.run)
    eventlog.prepare(plan.paths.events_in, plan.paths.events)
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(plan.paths.run)


def bare_connect(path: Path) -> socket.socket:
    """Connects as soon as somebody listens."""
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            time.sleep(0.001)
        else:
            return client


def bare_greeting(plan: Plan) -> float:
    started = time.perf_counter()
    with bare_qemu(plan, paused=True), bare_connect(plan.paths.owner_socket) as client:
        reader = client.makefile("rb")
        reader.readline()
        client.sendall(b'{"execute":"qmp_capabilities"}\n')
        reader.readline()
        return time.perf_counter() - started


def bare_boot(plan: Plan) -> float:
    started = time.perf_counter()
    with bare_qemu(plan, paused=False), bare_connect(plan.paths.agent_socket) as client:
        bare_sync(client)
        return time.perf_counter() - started


def bare_sync(client: socket.socket) -> None:
    """Asks until the agent answers: what nobody reads yet waits in the socket."""
    client.settimeout(AGENT_POLL)
    question = b'{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n'
    answer, number = b"", 0
    while b'{"return": ' not in answer:
        number += 1
        with suppress(TimeoutError):
            client.sendall(b"\xff" + question % number)
            answer += client.recv(4096)


# -- rows ------------------------------------------------------------------------


def greeting(plan: Plan, runs: int) -> Row:
    """From the start of the process to a monitor that can be used.

    Both sides negotiate: QEMU greets early, and answers once its machine is made.
    """

    async def ours() -> float:
        eventlog.prepare(plan.paths.events_in, plan.paths.events)
        started = time.perf_counter()
        child = await spawn(plan.paths, plan.machine.listening, plan.argv)
        try:
            session = await Session.connect(plan.paths.owner_socket, timeout=60)
            elapsed = time.perf_counter() - started
            await session.close()
            return elapsed
        finally:
            child.disown()
            await child.reaped()

    bare = partial(bare_greeting, plan)
    return compare("spawn to QMP", lambda: asyncio.run(ours()), bare, runs, 1.2)


def boot(plan: Plan, spec: qemuctl.Spec, runs: int) -> Row:
    """From nothing to a guest whose agent answers."""

    async def ours() -> float:
        started = time.perf_counter()
        async with qemuctl.launch(spec) as vm:
            await vm.wait_ready()
            return time.perf_counter() - started

    bare = partial(bare_boot, plan)
    return compare("cold boot to agent", lambda: asyncio.run(ours()), bare, runs, 1.05)


def run_command(plan: Plan, runs: int) -> Row:
    """A command line from its first byte to its last, against a bare boot."""

    ours = partial(timed, [QEMUCTL, "run", "tiny", "--", "true"])
    name = "qemuctl run tiny -- true / boot"
    return compare(name, ours, partial(bare_boot, plan), runs)


def listing(spec: qemuctl.Spec, runs: int) -> list[Row]:
    """Whole processes: what a user waits for."""
    for number in range(DEFINED_VMS):
        qemuctl.create(spec.model_copy(update={"name": f"defined{number}"}))

    rows = []
    bare = partial(timed, [sys.executable, "-c", "import typer"])
    for line, target in (("ls", 1.6), ("ls -a", None)):
        ours = partial(timed, [QEMUCTL, *line.split()])
        name = f"{DEFINED_VMS} VMs: {line} / import typer"
        rows.append(compare(name, ours, bare, runs, target))
    return rows


async def conversations(spec: qemuctl.Spec, runs: int) -> list[Row]:
    """What is said to one guest that runs."""
    async with qemuctl.launch(spec) as vm:
        await vm.wait_ready()
        measures = (qmp_command, agent_ping, guest_output)
        return [await measure(vm, runs) for measure in measures]


async def qmp_command(vm: qemuctl.Vm, runs: int) -> Row:
    """Ours on the owner's monitor, qemu.qmp's own client on the other one."""
    client = QMPClient("bench")
    await client.connect(str(vm.paths.tools_socket))
    ours, bare = [], []
    try:
        for _ in range(4 * runs):
            ours.append(await each(lambda: vm.execute(QueryStatus()), QMP_BLOCK))
            bare.append(await each(lambda: client.execute("query-status"), QMP_BLOCK))
    finally:
        await client.disconnect()
    return Row("one QMP command / qemu.qmp", "s", ours, bare, target=1.15)


async def each(action: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        await action()
    return (time.perf_counter() - started) / count


async def agent_ping(vm: qemuctl.Vm, runs: int) -> Row:
    """One agent serves one client: each side connects, asks and hangs up."""
    request, count = b'{"execute":"guest-ping"}\n', 20

    def with_bare() -> float:
        with bare_connect(vm.paths.agent_socket) as client:
            bare_sync(client)
            client.settimeout(None)
            reader = client.makefile("rb")
            started = time.perf_counter()
            for _ in range(count):
                client.sendall(request)
                reader.readline()
            return (time.perf_counter() - started) / count

    ours, bare = [], []
    for _ in range(2 * runs):
        await vm.agent.ping()
        ours.append(await each(vm.agent.ping, count))
        vm.agent.release()
        bare.append(await asyncio.to_thread(with_bare))
    return Row("agent round trip", "s", ours, bare)


async def guest_output(vm: qemuctl.Vm, runs: int) -> Row:
    """The command line's streaming, against one guest-exec that keeps it all."""
    command = ["head", "-c", str(OUTPUT), "/dev/urandom"]
    ours, bare = [], []
    for _ in range(runs):
        vm.agent.release()
        argv = [QEMUCTL, "exec", vm.name, "--", *command]
        ours.append(OUTPUT / MIB / await asyncio.to_thread(timed, argv))
        started = time.perf_counter()
        result = await vm.agent.run(command)
        bare.append(len(result.stdout) / MIB / (time.perf_counter() - started))
    return Row("10 MiB by qemuctl exec / agent.run", "MiB/s", ours, bare)


OURS = """
import asyncio, sys, qemuctl
from qemuctl.qmp.commands import QueryStatus
async def main():
    async with qemuctl.launch(qemuctl.Spec(name="owner", image="tiny")) as vm:
        await vm.wait_ready()
        await vm.execute(QueryStatus())
        print(vm.pid, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
BARE = "import sys; import qemu.qmp; print(0, flush=True); sys.stdin.read()"


def memory() -> list[Row]:
    """The process that owns a VM, against one that has only qemu.qmp loaded."""
    with owner(OURS) as (process, qemu):
        ours = process.memory_full_info()
        shells = [p for p in process.children(recursive=True) if p.pid != qemu]
        beside = [p.memory_full_info().pss for p in shells]
    with owner(BARE) as (process, _):
        bare = process.memory_full_info()
    return [
        Row("owner's RSS / import qemu.qmp", "MiB", [ours.rss / MIB], [bare.rss / MIB],
            target=60.0, absolute=True),
        Row("owner's PSS / import qemu.qmp", "MiB", [ours.pss / MIB], [bare.pss / MIB]),
        Row(f"{len(beside)} shells beside, PSS", "MiB", [sum(beside) / MIB]),
    ]  # fmt: skip


@contextmanager
def owner(code: str) -> Iterator[tuple[psutil.Process, int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin
        assert process.stdout
        yield psutil.Process(process.pid), int(process.stdout.readline())
        process.stdin.close()
