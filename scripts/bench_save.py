"""What saving and restoring cost, against a bare script that only has QEMU write its
state to a file and read it again."""

from __future__ import annotations

import array
import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from bench_forks import Line, bare_agent
from bench_table import ALONE, Row, timed

import qemuctl
from qemuctl import cmdline
from qemuctl.paths import VmPaths, private_dir
from qemuctl.registry.plan import prepare
from qemuctl.savestate.save import save

QEMUCTL = str(Path(sys.executable).with_name("qemuctl"))
NAME = "bench-save"
MEMORY = "512M"
# Bytes a second: what QEMU writes by itself, and as much as there can be, as ours.
USUAL, UNLIMITED = 128 << 20, 1 << 50


def saving(runs: int) -> Iterator[Row]:
    """A guest of each side, saved and restored again and again in turns."""
    spec = qemuctl.Spec(name=NAME, image="tiny", memory=MEMORY)
    qemuctl.create(spec)
    asyncio.run(_boot())
    bare = Bare(spec)
    sides = {
        "ours": _ours,
        "bare": partial(bare.cycle, USUAL),
        "fast": partial(bare.cycle, UNLIMITED),
        "cli": _cli,
    }
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    try:
        for _ in range(runs + 1):
            for side, measure in sides.items():
                times[side].append(measure())
    finally:
        bare.end()
        subprocess.run([QEMUCTL, "kill", NAME], check=True, capture_output=True)
    # The first ones only warm the caches.
    saves = {side: [a for a, _ in pairs[1:]] for side, pairs in times.items()}
    loads = {side: [b for _, b in pairs[1:]] for side, pairs in times.items()}
    yield Row("save / bare migrate", "s", saves["ours"], saves["bare"], 1.1)
    yield Row("save / migrate, no limit", "s", saves["ours"], saves["fast"])
    yield Row("qemuctl save, as a process", "s", saves["cli"])
    yield Row("restore to running / bare load", "s", loads["ours"], loads["bare"], 1.15)
    yield Row("qemuctl start, as a process", "s", loads["cli"])


async def _boot() -> None:
    vm = await qemuctl.start(NAME)
    assert vm is not None
    async with vm:
        await vm.wait_ready()


# -- ours ------------------------------------------------------------------------


def _ours() -> tuple[float, float]:
    return asyncio.run(_saved()), asyncio.run(_restored())


async def _saved() -> float:
    started = time.perf_counter()
    async with await qemuctl.attach(NAME) as vm:
        await save(vm)
    return time.perf_counter() - started


async def _restored() -> float:
    """Without the clock, which is set while the guest runs."""
    started = time.perf_counter()
    vm = await qemuctl.start(NAME)
    took = time.perf_counter() - started
    assert vm is not None
    await vm.close()
    return took


def _cli() -> tuple[float, float]:
    return timed([QEMUCTL, "save", NAME]), timed([QEMUCTL, "start", NAME])


# -- bare ------------------------------------------------------------------------


class Bare:
    """The same by a script with nothing but sockets."""

    def __init__(self, spec: qemuctl.Spec) -> None:
        self.paths = VmPaths.of("bare-save")
        self.file = self.paths.state / "state"
        private_dir(self.paths.state)
        plan = asyncio.run(prepare(spec, self.paths))
        self.argv = cmdline.argv(plan.machine, paused=False)
        self.qmp = self._started([])
        bare_agent(self.paths.agent_socket).socket.close()

    def _started(self, more: list[str]) -> Line:
        private_dir(self.paths.run)
        self.process = subprocess.Popen(
            [*self.argv, *more], start_new_session=ALONE,
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        qmp = Line(self.paths.owner_socket)
        qmp.read()
        qmp.ask("qmp_capabilities")
        events = [{"capability": "events", "state": True}]
        qmp.ask("migrate-set-capabilities", capabilities=events)
        return qmp

    def cycle(self, pace: int) -> tuple[float, float]:
        """Seconds to save, at so many bytes a second at most, and to restore."""
        self.qmp.ask("migrate-set-parameters", **{"max-bandwidth": pace})
        started = time.perf_counter()
        self._save()
        between = time.perf_counter()
        self._restore()
        return between - started, time.perf_counter() - between

    def _save(self) -> None:
        self.qmp.ask("stop")
        with self.file.open("wb") as file:
            self._hand_over(file)
            self.qmp.ask("migrate", uri="fd:state")
            self.qmp.wait("MIGRATION", "completed")
            os.fsync(file.fileno())  # before QEMU, which has it, too, ends
        self.qmp.ask("quit")
        self.process.wait()
        self.qmp.socket.close()

    def _restore(self) -> None:
        self.qmp = self._started(["-S", "-incoming", "defer"])
        with self.file.open("rb") as file:
            self._hand_over(file)
            self.qmp.ask("migrate-incoming", uri="fd:state")
            self.qmp.wait("MIGRATION", "completed")
        self.qmp.ask("cont")

    def _hand_over(self, file: BinaryIO) -> None:
        fd = array.array("i", [file.fileno()])
        self.qmp.socket.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd)])
        self.qmp.ask("getfd", fdname="state")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.paths.run, ignore_errors=True)
        shutil.rmtree(self.paths.state, ignore_errors=True)
