"""What it costs to watch many VMs: `qemuctl top` on fifty that run."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from bench_table import Row

import qemuctl
from qemuctl.process import Identity
from qemuctl.registry.removal import remove

QEMUCTL = str(Path(sys.executable).with_name("qemuctl"))
VMS = 50
AT_ONCE = 4  # starts
WARM_UP = 3  # seconds: loading Python is not watching
SAMPLES = 20
# Halts, and halts again: `hlt; jmp -3`.
SECTOR = b"\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"


def top() -> Iterator[Row]:
    """The share of one core, and what it makes the VMs themselves do."""
    with tempfile.TemporaryDirectory(prefix="bench-top-") as name:
        disk = Path(name) / "sector.raw"
        disk.write_bytes(SECTOR.ljust(1024 * 1024, b"\0"))
        with running(disk) as machines:
            idle = share(machines, None)
            for arguments in (["top", "--json"], ["top"]):
                with watching(arguments) as process:
                    time.sleep(WARM_UP)
                    ours = share([process], process)
                    beside = share(machines, process) - idle
                words = "json" if "--json" in arguments else "table"
                row = f"{VMS} VMs: top, {words}, of a core"
                yield Row(row, "%", [ours], target=10.0, absolute=True)
                yield Row(f"  the VMs' own work for it, {words}", "%", [beside])


def share(of: list[psutil.Process], watcher: psutil.Process | None) -> float:
    """The percentage of one core that some processes take in the next seconds."""
    started, before = time.perf_counter(), sum(map(cpu_seconds, of))
    time.sleep(SAMPLES)
    if watcher is not None and watcher.status() == psutil.STATUS_ZOMBIE:
        raise RuntimeError("top has ended")
    used = sum(map(cpu_seconds, of)) - before
    return 100 * used / (time.perf_counter() - started)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def watching(arguments: list[str]) -> Iterator[psutil.Process]:
    """`top` on a terminal of 60 lines that somebody reads."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 160, 0, 0))
    process = subprocess.Popen([QEMUCTL, *arguments], stdin=theirs, stdout=theirs)
    os.close(theirs)
    reader = subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        os.close(ours)
        reader.wait()


@contextmanager
def running(disk: Path) -> Iterator[list[psutil.Process]]:
    """Fifty VMs that halt."""
    names = [f"top{number}" for number in range(VMS)]
    try:
        yield [psutil.Process(x.pid) for x in asyncio.run(started(names, disk))]
    finally:
        asyncio.run(ended(names))


async def started(names: list[str], disk: Path) -> list[Identity]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> Identity:
        drive = {"path": str(disk), "format": "raw", "readonly": True}
        qemuctl.create(
            qemuctl.Spec.model_validate(
                {"name": name, "memory": "16M", "nics": [], "disks": [drive]}
            )
        )
        async with turns, await qemuctl.start(name) as vm:
            return vm.record.qemu

    return await asyncio.gather(*map(one, names))


async def ended(names: list[str]) -> None:
    for name in names:
        with suppress(qemuctl.QemuctlError):
            async with await qemuctl.attach(name) as vm:
                await vm.power.kill()
        with suppress(qemuctl.QemuctlError):
            remove(name)
