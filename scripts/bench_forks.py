"""What a fork costs: against a bare script that does the same, and against a boot."""

from __future__ import annotations

import array
import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from bench_table import Row

import qemuctl
from qemuctl import cmdline
from qemuctl.paths import VmPaths, data_home, private_dir
from qemuctl.registry.plan import prepare
from qemuctl.registry.template import Template
from qemuctl.templates.catalog import Making, cached_template, create
from qemuctl.templates.fork import (
    fork,
    furnish,
    origin,
    park,
    rouse,
    running_spec,
    warm_up,
)
from qemuctl.templates.identity import identity, macs
from qemuctl.templates.key import Recipe

MIB = 1024 * 1024
POLL = 0.002  # seconds
CROWD = 100
TRUE = ("true",)


class Line:
    """JSON lines over a unix socket, one answer to each."""

    def __init__(self, path: Path) -> None:
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(os.fspath(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                self.socket.close()
                time.sleep(0.001)
        self.reader = self.socket.makefile("rb")

    def read(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.reader.readline())
        return value

    def ask(self, command: str, **arguments: Any) -> Any:
        question = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(question).encode() + b"\n")
        while "return" not in (answer := self.read()):
            if "error" in answer:
                raise RuntimeError(answer["error"])
        return answer["return"]

    def wait(self, event: str, status: str) -> None:
        while True:
            found = self.read()
            if found.get("event") == event and found["data"]["status"] == status:
                return


def bare_agent(path: Path) -> Line:
    agent = Line(path)
    agent.socket.sendall(
        b'\xff{"execute":"guest-sync-delimited","arguments":{"id":1}}\n'
    )
    while agent.reader.read(1) != b"\xff":
        pass
    agent.read()
    return agent


def bare_exec(agent: Line, *argv: str) -> bytes:
    options = {"arg": list(argv[1:]), "capture-output": True}
    pid = agent.ask("guest-exec", path=argv[0], **options)["pid"]
    while not (state := agent.ask("guest-exec-status", pid=pid))["exited"]:
        time.sleep(POLL)
    return base64.b64decode(state.get("out-data", ""))


class Bare:
    """The same fork by a script with nothing but sockets."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.paths = VmPaths.of("bare-fork")
        spec = running_spec(template, template.spec, "bare-fork")
        self.own = macs(spec, "bare-fork")

    def _prepare(self) -> list[str]:
        """The command line, which a script simply has."""
        private_dir(self.paths.state)
        spec = running_spec(self.template, self.template.spec, "bare-fork")
        self.paths.spec.write_text("")
        asyncio.run(furnish(self.template, self.paths))
        plan = asyncio.run(prepare(spec, self.paths, ram=origin(self.template).ram))
        shutil.rmtree(self.paths.disks, ignore_errors=True)
        return cmdline.argv(plan.machine, paused=True)

    def loaded(self, argv: list[str]) -> tuple[subprocess.Popen[bytes], Line]:
        private_dir(self.paths.run)
        if self.template.overlays.is_dir():
            private_dir(self.paths.disks)
            for overlay in self.template.overlays.iterdir():
                shutil.copyfile(overlay, self.paths.disks / overlay.name)
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        qmp = Line(self.paths.owner_socket)
        qmp.read()
        qmp.ask("qmp_capabilities")
        wanted = [
            {"capability": name, "state": True}
            for name in ("x-ignore-shared", "events")
        ]
        qmp.ask("migrate-set-capabilities", capabilities=wanted)
        with self.template.state.open("rb") as state:
            fd = array.array("i", [state.fileno()])
            qmp.socket.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd)])
            qmp.ask("getfd", fdname="state")
        qmp.ask("migrate-incoming", uri="fd:state")
        qmp.wait("MIGRATION", "completed")
        return process, qmp

    def run(self, *, whole: bool, parked: bool = False) -> float:
        """Seconds to the first command's result, from the start or from `cont`."""
        argv = self._prepare()
        started = time.perf_counter()
        process, qmp = self.loaded(argv)
        try:
            started = time.perf_counter() if parked else started
            qmp.ask("cont")
            agent = bare_agent(self.paths.agent_socket)
            if whole:
                script = "\n".join(identity(self.template.guest, "bare", self.own))
                bare_exec(agent, "/bin/sh", "-c", script)
            bare_exec(agent, *TRUE)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(self.paths.run, ignore_errors=True)
            shutil.rmtree(self.paths.state, ignore_errors=True)


async def ours(template: Template) -> float:
    started = time.perf_counter()
    async with fork(template) as vm:
        await vm.agent.run(TRUE)
        return time.perf_counter() - started


async def ours_parked(template: Template) -> float:
    async with (attached := await park(template)) as vm:
        await warm_up(attached, template)
        started = time.perf_counter()
        await rouse(attached, template)
        await vm.agent.run(TRUE)
        return time.perf_counter() - started


async def boot(spec: qemuctl.Spec) -> float:
    started = time.perf_counter()
    async with qemuctl.launch(spec) as vm:
        await vm.wait_ready()
        await vm.agent.run(TRUE)
        return time.perf_counter() - started


def turns(runs: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Samples of several, one after the other each time."""
    for measure in measures:
        measure()
    rounds = [[measure() for measure in measures] for _ in range(runs)]
    return [list(samples) for samples in zip(*rounds, strict=True)]


def forks(runs: int) -> Iterator[Row]:
    spec = qemuctl.Spec(name="bench", image="tiny")
    template = asyncio.run(cached_template(spec))
    template = replace(template, text="name: bench\nimage: tiny\nballoon: false\n")
    bare = Bare(template)
    mine, same, hasty = turns(
        4 * runs,
        lambda: asyncio.run(ours(template)),
        lambda: bare.run(whole=True),
        lambda: bare.run(whole=False),
    )
    yield Row("fork to first result, tiny", "s", mine, same, target=1.15)
    yield Row("  the same, bare without identity", "s", mine, hasty)
    mine, hasty = turns(
        4 * runs,
        lambda: asyncio.run(ours_parked(template)),
        lambda: bare.run(whole=False, parked=True),
    )
    more = [1000 * (a - b) for a, b in zip(mine, hasty, strict=True)]
    yield Row("parked fork to first result, more than bare", "ms", more, target=60,
              absolute=True)  # fmt: skip
    yield from against_boot("tiny", template, spec, runs, 0.1)
    yield from crowd(template)
    yield from debian(runs)


def against_boot(
    name: str, template: Template, spec: qemuctl.Spec, runs: int, target: float
) -> Iterator[Row]:
    mine, cold = turns(
        runs,
        lambda: asyncio.run(ours(template)),
        lambda: asyncio.run(boot(spec)),
    )
    yield Row(f"fork / cold boot, {name}", "s", mine, cold, target=target)


def debian(runs: int) -> Iterator[Row]:
    """Where the user has built the image: that takes minutes."""
    if not (data_home() / "images/debian").exists():
        print("not measured: Debian, for its image is not built")
        return
    spec = qemuctl.Spec(name="bench", image="debian")
    making = Making(spec=spec, recipe=Recipe(), source="debian", timeout=600)
    template = asyncio.run(create("bench-debian", making))
    yield from against_boot("debian", template, spec, max(1, runs // 3), 1 / 30)


def crowd(template: Template) -> Iterator[Row]:
    """Many forks at once; one that fails ends the benchmark."""
    pss, rss = asyncio.run(_crowd(template))
    yield Row(f"{CROWD} forks: PSS of each", "MiB", pss)
    yield Row(f"{CROWD} forks: their owner's RSS", "MiB", [rss],
              target=60 + 0.5 * CROWD, absolute=True)  # fmt: skip


async def _crowd(template: Template) -> tuple[list[float], float]:
    """All are there at once; each is woken, stopped, and later asked for its name. Were
    all to run, an emulator of each would take two hundredths of a core even idle."""
    async with AsyncExitStack() as stack:
        forks = []
        for _ in range(CROWD):
            attached = await park(template)
            await stack.enter_async_context(attached)
            await warm_up(attached, template)
            forks.append(attached)
        for attached in forks:
            await rouse(attached, template)
            result = await attached.vm.agent.run(["hostname"])
            assert result.text == attached.vm.name, result
            await attached.vm.power.pause()
        pids = [attached.vm.pid for attached in forks]
        pss = [psutil.Process(pid).memory_full_info().pss / MIB for pid in pids]
        return pss, psutil.Process().memory_info().rss / MIB
