"""Whole commands, as people type them: cold, by the command server, and virsh's.

`/ bare` is the ratio to `python -c 'import asyncio'`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench_libvirt import Libvirt, libvirt
from bench_table import Row, timed

from qemuctl.paths import VmPaths
from qemuctl.registry.records.process_record import Record

QEMUCTL = str(Path(sys.executable).with_name("qemuctl"))
BARE = [sys.executable, "-c", "import asyncio"]
MEMORY = 256  # MiB
# Of virsh's; ours have no prefix, for their home is the benchmark's own.
NAMES = ("bench-web", "bench-idle", "bench-made")
STATUS = '{"execute":"query-status"}'


@dataclass(frozen=True)
class Step:
    """One command of a round: ours, virsh's if it has one, and the most that ours may
    take, in the time of `BARE`."""

    name: str
    ours: str
    virsh: str | None
    target: float | None = None


# In this order, again and again: each leaves what the next ones need.
STEPS = (
    Step("create / define", f"create made --image tiny --memory {MEMORY}M",
         "define {made}", 4.5),
    Step("rm / undefine", "rm made", "undefine bench-made"),
    Step("start", "start idle", "start bench-idle"),
    Step("kill / destroy", "kill idle", "destroy bench-idle", 2.5),
    Step("pause / suspend", "pause web", "suspend bench-web", 2.5),
    Step("resume", "resume web", "resume bench-web", 2.5),
    Step("qmp query-status", "qmp web query-status",
         f"qemu-monitor-command bench-web {STATUS}", 2.5),
    Step("info / dominfo", "info web", "dominfo bench-web", 3.5),
    Step("stats / domstats", "stats web", "domstats bench-web"),
    Step("balloon / dommemstat", "balloon web", "dommemstat bench-web", 2.5),
    Step("balloon 200M / setmem", "balloon web 200M",
         "setmem bench-web 200M --live"),
    Step("balloon 256M --no-wait / setmem", "balloon web 256M --no-wait",
         "setmem bench-web 256M --live"),
    Step("disk add / attach-disk", "disk add web {disk} --format raw --live --target x",
         "attach-disk bench-web {disk} vdb --subdriver raw --live", 3.5),
    Step("disk rm / detach-disk", "disk rm web x --live",
         "detach-disk bench-web vdb --live"),
    Step("ls -a / list --all", "ls -a", "list --all"),
    Step("ls --help / help list", "ls --help", "help list", 3.0),
    Step("exec NAME -- true", "exec web -- true", None, 3.5),
    Step("run tiny -- true", "run tiny -- true", None),
    Step("save", "save web", "save bench-web {state}"),
    Step("start of it / restore", "start web", "restore {state}"),
)  # fmt: skip


def commands(runs: int) -> Iterator[Row]:
    """A row a command: each round takes them in turn, and all sides of each."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        folder = Path(name)
        for disk in ("ours.raw", "theirs.raw"):
            (folder / disk).write_bytes(bytes(1 << 20))
        stack.enter_context(guests())
        virsh = stack.enter_context(libvirt(folder))
        if virsh is not None:
            stack.enter_context(domains(virsh))
        served = stack.enter_context(server())
        yield from rounds(runs, folder, virsh, served=served)


def rounds(
    runs: int, folder: Path, virsh: Libvirt | None, *, served: bool
) -> Iterator[Row]:
    disk, own = folder / "ours.raw", folder / "theirs.raw"
    made, state = folder / "bench-made.xml", folder / "state"
    cold = {step: [QEMUCTL, *words(step.ours, disk=disk)] for step in STEPS}
    sides = {"ours": cold, "server": cold if served else {}, "virsh": {}}
    if virsh is not None:
        sides["virsh"] = {
            step: [*virsh.virsh, *words(step.virsh, disk=own, made=made, state=state)]
            for step in STEPS
            if step.virsh is not None
        }
    times: dict[tuple[str, Step], list[float]] = {}
    bare = []
    # The first round only warms the caches.
    for _ in range(runs + 1):
        bare.append(timed(BARE))
        for side, lines in sides.items():
            with environment(QEMUCTL_SERVER=None if side == "server" else "no"):
                for step, line in lines.items():
                    times.setdefault((side, step), []).append(timed(line))
    columns = {
        "server" if served else "no server": "server",
        f"virsh {virsh.version}" if virsh is not None else "no virsh": "virsh",
    }
    for step in STEPS:
        found = {name: times.get((x, step), [])[1:] for name, x in columns.items()}
        mine = times["ours", step][1:]
        yield Row(step.name, "s", mine, bare[1:], step.target, beside=found)


def words(line: str, **files: Path) -> list[str]:
    """The arguments, with files in the place of their names."""
    return [word.format(**files) if word != STATUS else word for word in line.split()]


@contextmanager
def environment(**changes: str | None) -> Iterator[None]:
    """Sets variables for the block; None takes one away."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# -- what is measured on -----------------------------------------------------------


def qemuctl(*arguments: str, check: bool = True) -> bool:
    with environment(QEMUCTL_SERVER="no"):
        done = subprocess.run([QEMUCTL, *arguments], check=check, capture_output=True)
    return done.returncode == 0


@contextmanager
def guests() -> Iterator[None]:
    """One of ours that has booted, and one that is off."""
    for name in ("web", "idle"):
        qemuctl("create", name, "--image", "tiny", "--memory", f"{MEMORY}M")
    try:
        qemuctl("start", "web")
        qemuctl("wait", "web")
        yield
    finally:
        for name in ("web", "idle"):
            qemuctl("kill", name, check=False)


@contextmanager
def domains(virsh: Libvirt) -> Iterator[None]:
    """The same of libvirt's."""
    record = Record.read(VmPaths.of("web").record)
    assert record is not None
    virsh.forget(*NAMES)
    try:
        for name in NAMES:
            virsh.run("define", str(virsh.domain(name, record.argv, MEMORY)))
        virsh.run("undefine", "bench-made")
        virsh.run("start", "bench-web")
        virsh.wait_agent("bench-web")
        yield
    finally:
        virsh.forget(*NAMES)


@contextmanager
def server() -> Iterator[bool]:
    """Whether there is a command server, for the block."""
    started = subprocess.run(
        [QEMUCTL, "server", "start"], check=False, capture_output=True
    )
    if started.returncode:
        print("the command server is not measured: `qemuctl server start` fails")
    try:
        yield started.returncode == 0
    finally:
        if not started.returncode:
            qemuctl("server", "stop", check=False)
