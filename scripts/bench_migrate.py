"""Moving a running guest: to another home by a unix socket, to another host by ssh."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench_commands import server
from bench_forks import Line, turns
from bench_sshd import Host, sshd
from bench_table import ALONE, Row, timed

import qemuctl
from qemuctl.migration import Phase, Progress, migrate, parse_destination
from qemuctl.migration.link import RECEIVER
from qemuctl.migration.options import DOWNTIME
from qemuctl.paths import VmPaths, cache_home, private_dir, run_home

QEMUCTL = str(Path(sys.executable).with_name("qemuctl"))
MIB = 1024 * 1024
MEMORY, FILLED = 512, 300  # MiB
# As ours: bytes a second and milliseconds.
LIMITS = {"max-bandwidth": 1 << 40, "downtime-limit": round(DOWNTIME * 1000)}
# Random data, a little of it many times over: nothing on the way looks for that.
FILL = f"""
set -e
mkdir /tmp/full
mount -t tmpfs -o size=90% full /tmp/full
head -c $((10 << 20)) /dev/urandom >/tmp/full/0
for n in $(seq {FILLED // 10 - 1}); do cp /tmp/full/0 /tmp/full/$n; done
"""


@dataclass(frozen=True)
class Trip:
    """Seconds of one migration: all of it up to the guest's first step there, what
    its RAM took of them, and how long QEMU says that the guest stood still; bytes."""

    total: float
    ram: float
    downtime: float
    size: int


def migrations(runs: int) -> Iterator[Row]:
    """All rows; what they make is in folders that are removed at the end."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-move-"))
        folder = Path(name)
        ours = Ours(folder)
        stack.callback(ours.end)
        ours.begin()
        bare = Bare(folder)
        stack.callback(bare.end)
        bare.begin()
        yield from by_socket(ours, bare, runs)
        with server() as served:
            if served:
                yield from by_server(ours, bare, runs)
        with sshd(folder / "ssh") as host:
            if host is None:
                print("not measured: migration by ssh, for there is no sshd")
            else:
                os.environ["QEMUCTL_SSH"] = " ".join(host.ssh)
                stack.callback(os.environ.pop, "QEMUCTL_SSH")
                yield from by_ssh(ours, host, folder / "bytes", runs)


def by_socket(ours: Ours, bare: Bare, runs: int) -> Iterator[Row]:
    trips = [(ours.move(), bare.move()) for _ in range(4 * runs + 1)][1:]
    mine, theirs = zip(*trips, strict=True)
    totals = [trip.total for trip in theirs]
    name = f"{MEMORY} MiB guest to another home"
    yield Row(name, "s", [trip.total for trip in mine], totals, target=1.1)
    yield Row("  its RAM alone", "s",
              [x.ram for x in mine], [x.ram for x in theirs], target=1.1)  # fmt: skip
    yield Row("  its downtime, by QEMU", "s",
              [x.downtime for x in mine], [x.downtime for x in theirs])  # fmt: skip
    stood = [median(trip.downtime for trip in side) for side in (mine, theirs)]
    more = 1000 * (stood[0] - stood[1])
    yield Row("  its downtime, more than bare", "ms", [more], target=30, absolute=True)
    whole = [ours.command() for _ in range(runs)]
    yield Row("  the same by qemuctl migrate, all of it", "s", whole, totals)


def by_server(ours: Ours, bare: Bare, runs: int) -> Iterator[Row]:
    """With a command server, which serves the receiver, too."""
    mine, theirs = turns(4 * runs, lambda: ours.move().total, lambda: bare.move().total)
    yield Row("the same by a command server", "s", mine, theirs, target=1.5)


def by_ssh(ours: Ours, host: Host, file: Path, runs: int) -> Iterator[Row]:
    pairs = []
    for _ in range(runs + 1):
        trip = ours.move(host)
        pairs.append((trip, copied(host, file, trip.size)))
    trips, copies = zip(*pairs[1:], strict=True)
    name = f"the same by ssh / dd | ssh of {trips[-1].size // MIB} MiB"
    yield Row(name, "s", [trip.total for trip in trips], list(copies), target=1.2)
    yield Row("  its RAM alone", "s", [trip.ram for trip in trips], list(copies),
              target=1.2)  # fmt: skip


def copied(host: Host, file: Path, size: int) -> float:
    """Seconds of a script that copies as many bytes; the file is in the cache."""
    if not file.exists():
        with file.open("wb") as data:
            for _ in range(size // MIB):
                data.write(os.urandom(MIB))
            data.write(os.urandom(size % MIB))
    os.truncate(file, size)
    to = f"{' '.join(host.ssh)} {host.name} 'cat >/dev/null'"
    return timed(["/bin/sh", "-c", f"dd if={file} bs=1M | {to}"])


# -- both sides' guests ------------------------------------------------------------


def enter(home: Path) -> None:
    """From here on this process is in this home; they all share one cache."""
    if not home.exists():
        cache = cache_home().resolve()
        private_dir(home)
        (home / "cache").symlink_to(cache)
    os.environ["QEMUCTL_HOME"] = str(home)


async def booted(name: str) -> list[str]:
    """Starts a guest, most of its memory full; gives its QEMU's command line."""
    spec = qemuctl.Spec(name=name, image="tiny", memory=f"{MEMORY}M")
    qemuctl.create(spec)
    async with await qemuctl.start(name) as vm:
        await vm.wait_ready()
        result = await vm.agent.run(["/bin/sh", "-c", FILL])
        assert result.ok, result
        return vm.record.argv


async def killed(name: str) -> None:
    with suppress(qemuctl.QemuctlError):
        async with await qemuctl.attach(name) as vm:
            await vm.power.kill()


class Ours:
    """A guest that the library moves, to and fro between two homes."""

    name = "moving"

    def __init__(self, folder: Path) -> None:
        self.here, self.there = folder / "a", folder / "b"
        self.before = os.environ["QEMUCTL_HOME"]

    def begin(self) -> None:
        enter(self.there)
        enter(self.here)
        asyncio.run(booted(self.name))

    def end(self) -> None:
        """Ends it wherever it is."""
        for home in (self.here, self.there):
            enter(home)
            asyncio.run(killed(self.name))
            shutil.rmtree(run_home(), ignore_errors=True)
        os.environ["QEMUCTL_HOME"] = self.before

    def move(self, host: Host | None = None) -> Trip:
        trip = asyncio.run(self._moved(host))
        self._follow()
        return trip

    def _follow(self) -> None:
        self.here, self.there = self.there, self.here
        enter(self.here)

    async def _moved(self, host: Host | None) -> Trip:
        phases: dict[Phase, float] = {}

        def report(progress: Progress) -> None:
            phases.setdefault(progress.phase, time.perf_counter())

        to = f"local:{self.there}" if host is None else f"ssh://{host.name}"
        receiver = RECEIVER if host is None else self._receiver()
        async with await qemuctl.attach(self.name) as vm:
            started = time.perf_counter()
            moved = await migrate(
                vm, parse_destination(to), receiver=receiver, report=report
            )
        assert moved.downtime is not None
        return Trip(
            total=phases[Phase.CLEAN] - started,
            ram=phases[Phase.SWITCH] - phases[Phase.RAM],
            downtime=moved.downtime,
            size=moved.ram_bytes,
        )

    def _receiver(self) -> str:
        package = Path(qemuctl.__file__).parents[1]
        return (
            f"env QEMUCTL_HOME={self.there} PYTHONPATH={package} "
            f"{sys.executable} -m qemuctl"
        )

    def command(self) -> float:
        seconds = timed([QEMUCTL, "migrate", self.name, f"local:{self.there}"])
        self._follow()
        return seconds


def connected(path: Path) -> Line:
    """A monitor that takes commands and tells how a migration goes on."""
    qmp = Line(path)
    qmp.read()
    qmp.ask("qmp_capabilities")
    events = {"capability": "events", "state": True}
    qmp.ask("migrate-set-capabilities", capabilities=[events])
    return qmp


class Bare:
    """A guest like it that a script moves: it has a command line, and two sockets.

    The first QEMU is started by the library, as it is about the way only.
    """

    name = "bare-moving"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.argv: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        self.argv = asyncio.run(booted(self.name))
        self.paths = VmPaths.of(self.name)
        self.qmp = connected(self.paths.tools_socket)

    def end(self) -> None:
        """Ends it wherever it is."""
        asyncio.run(killed(self.name))
        for process in self.processes:
            process.kill()
            process.wait()

    def _leave(self) -> None:
        """Ends the QEMU that the guest has left."""
        self.qmp.ask("quit")
        if len(self.processes) > 1:
            self.processes.pop(0).wait()

    def move(self) -> Trip:
        """Has another QEMU go on with it, as ours does."""
        self.number += 1
        run = self.folder / f"bare{self.number}"
        run.mkdir()
        argv = [self._here(text, run) for text in self.argv]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*argv, "-S", "-incoming", f"unix:{run}/ram"],
            stdin=subprocess.DEVNULL, start_new_session=ALONE,
        )  # fmt: skip
        self.processes.append(process)
        there = connected(run / "tools.qmp")
        begun = time.perf_counter()
        converge = {"capability": "auto-converge", "state": True}
        self.qmp.ask("migrate-set-capabilities", capabilities=[converge])
        self.qmp.ask("migrate-set-parameters", **LIMITS)
        self.qmp.ask("migrate", uri=f"unix:{run}/ram")
        self.qmp.wait("MIGRATION", "completed")
        sent = time.perf_counter()
        there.wait("MIGRATION", "completed")
        there.ask("cont")
        total = time.perf_counter() - started
        info = self.qmp.ask("query-migrate")
        self._leave()
        self.qmp = there
        return Trip(
            total=total,
            ram=sent - begun,
            downtime=info["downtime"] / 1000,
            size=info["ram"]["transferred"],
        )

    def _here(self, text: str, run: Path) -> str:
        for folder in (self.paths.run, self.paths.state):
            text = text.replace(str(folder), str(run))
        return text
