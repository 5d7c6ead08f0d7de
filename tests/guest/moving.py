"""What the tests of migration share: moving a VM, where it is, what is left of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from psutil import NoSuchProcess, Process

from qemuctl.home_id import run_name
from qemuctl.vm.listing import listing
from tests.conftest import wait_until
from tests.guest.conftest import Home
from tests.guest.disks import asked

Json = dict[str, Any]
Homes = tuple[Home, ...]

# Seconds for what ends by itself, on a host that has much else to do.
ENDING = 30.0
PHASES = ["check", "prepare", "storage", "ram", "switch-over", "confirm", "clean-up"]
ALIVE = ("running", "paused")
# What a VM that runs has in its folders, wherever it came from.
RUN = {"launch.sh", "owner.qmp", "tools.qmp", "serial.sock", "agent.sock", "copy.sock"}
STATE = {
    "booted", "disks", "events.in", "events.out", "exit", "lock", "made",
    "process.json", "qemu.log", "qmp.jsonl", "serial.log", "started.yaml", "vm.yaml",
    "ballooned", "changing.lock", "moved.json", "plugged.json", "serial.log.1",
    "saves", "snapshots.json",
}  # fmt: skip


def destination(home: Home) -> str:
    return f"local:{home.path}"


def rows(home: Home) -> dict[str, Json]:
    """What `ls -a` shows; without starting a program where that is not needed."""
    if home.root != Path("/"):
        return {row["name"]: row for row in json.loads(home.text("ls", "-a", "--json"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEMUCTL_HOME", str(home.path))
        return {entry.name: asdict(entry) for entry in listing(include_off=True)}


def state(home: Home, name: str) -> str | None:
    """None where there is no such VM."""
    row = rows(home).get(name)
    return None if row is None else str(row["state"])


def reports(text: str) -> list[Json]:
    return [json.loads(line) for line in text.splitlines()]


def phases(lines: list[Json]) -> list[str]:
    return [phase for phase, _ in itertools.groupby(line["phase"] for line in lines)]


def move(here: Home, name: str, to: str, *options: object, **more: Any) -> Json:
    """Migrates a VM, which must work; gives the result."""
    more.setdefault("timeout", 90)
    lines = reports(here.text("migrate", name, to, "--json", *options, **more))
    assert phases(lines) == [*PHASES, "done"]
    return lines[-1]


def _in_words(line: str) -> str:
    """What an error or a note of `--json` says, as people get it."""
    if not line.startswith("{"):
        return line
    said = json.loads(line)
    if "note" in said:
        return f"{said['note']}\n"
    hint = f"\nhint: {said['hint']}\n" if said["hint"] else ""
    return f"error: {said['error']}\n{hint}"


class Migration:
    """A migration that goes on: what it reports, and its end."""

    def __init__(self, here: Home, name: str, to: str, *options: object) -> None:
        self.here, self.lines = here, list[Json]()
        self.process = here.popen(
            "migrate", name, to, "--json", *options,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def until(self, phase: str) -> None:
        """Returns as soon as it is in a phase; fails when it ends before."""
        for line in self._more():
            if line["phase"] == phase:
                return
        words = self.end()[1]
        raise AssertionError(f"never in {phase}: {phases(self.lines)}: {words}")

    def _more(self) -> Iterator[Json]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.lines.append(json.loads(line))
            yield self.lines[-1]

    def interrupt(self) -> None:
        """Ctrl-C, which goes to all that the terminal's command has started."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, timeout: float = 60) -> tuple[int, str]:
        """Its exit status, and what it says on standard error."""
        try:
            out, words = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.interrupt()
            self.process.communicate()
            raise
        self.lines += reports(out.decode())
        text = words.decode(errors="replace")
        assert "Traceback" not in text, text
        return self.process.returncode, "".join(map(_in_words, text.splitlines(True)))


def parties(here: Home, there: Home) -> dict[str, list[Process]]:
    """Who takes part in a migration just now."""

    def those(home: Home, test: Callable[[str, list[str]], bool]) -> list[Process]:
        every = [(p, p.info["cmdline"] or [""]) for p in home.processes()]
        found = [p for p, argv in every if test(Path(argv[0]).name, argv[1:])]
        # A child that has not become another program yet, such as an undertaker,
        # has the words of its parent.
        pids = {p.pid for p in found}
        return [p for p in found if p.info["ppid"] not in pids]

    def qemus(home: Home) -> list[Process]:
        return those(home, lambda program, _: program.startswith("qemu-system"))

    return {
        "command": those(
            here, lambda name, argv: name.startswith("python") and "migrate" in argv
        ),
        "receiver": those(there, lambda _, argv: "migrate-receive" in argv),
        "ssh": those(here, lambda name, _: name == "ssh"),
        "source": qemus(here),
        "destination": qemus(there),
    }


def kill(processes: list[Process]) -> None:
    for process in processes:
        with contextlib.suppress(NoSuchProcess):
            process.kill()


def run_folder(home: Home) -> Path:
    """Where the sockets of a home are, as the test sees it."""
    name = run_name(home.path / "state") or "none"
    runtime = home.env.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and not runtime.startswith("/run/user/"):
        return home.root / runtime[1:] / "qemuctl" / name
    return home.root / f"tmp/qemuctl-{os.getuid()}" / name


def left(home: Home) -> list[str]:
    """What lies in a home without belonging there: files, sockets, processes, and
    what QEMU still does for a migration."""
    found = []
    vms = rows(home)
    for folder in (home.path / "state/vms").glob("*"):
        if folder.name not in vms:
            found.append(str(folder))
        found += [str(f) for f in folder.iterdir() if f.name not in STATE]
    for folder in run_folder(home).glob("*"):
        if vms.get(folder.name, {}).get("state") not in ALIVE:
            found.append(str(folder))
        found += [str(f) for f in folder.iterdir() if f.name not in RUN]
    running = [name for name, row in vms.items() if row["state"] in ALIVE]
    found += _others(home, len(running))
    for name in running:
        found += _unfinished(home, name)
    return found


def _others(home: Home, machines: int) -> list[str]:
    """Processes beyond a QEMU for each machine and who looks after it."""
    every = home.processes()
    words = [" ".join(p.info["cmdline"] or [])[:200] for p in every]
    qemus = [text for text in words if "/qemu-system" in text.split(" ")[0]]
    busy = [text for text in words if "migrate" in text]
    busy += [text for text in words if text.startswith("ssh ")]
    extra = [f"{len(qemus)} QEMUs"] if len(qemus) != machines else []
    return busy + extra


def _unfinished(home: Home, name: str) -> list[str]:
    """Exports, jobs and connections of its disks."""
    questions = ("query-block-exports", "query-jobs", "query-named-block-nodes")
    if home.root == Path("/"):
        exports, jobs, nodes = asked(home, name, *((each, {}) for each in questions))
    else:
        exports, jobs, nodes = (
            json.loads(home.text("qmp", name, each)) for each in questions
        )
    drivers = ("nbd", "mirror_top")
    return [*map(str, exports + jobs), *(str(n) for n in nodes if n["drv"] in drivers)]


def tidy(*homes: Home) -> None:
    """Fails if something is left; what ends by itself has time for it."""
    deadline = time.monotonic() + ENDING
    while found := [thing for home in homes for thing in left(home)]:
        assert time.monotonic() < deadline, f"left behind: {found}"


def one_copy(homes: Homes, name: str, *, crashed: bool = False) -> Home:
    """The home in which the VM is on, after `migrate-recover` where `ls` wants that,
    and `gc` where a command has `crashed`. Fails unless it is on in just one, or is off
    in just one, from where it starts."""
    for home in homes:
        row = rows(home).get(name, {})
        if "migration" in f"{row.get('problem')} {row.get('ended')}":
            home.run("migrate-recover", name)
        if crashed:
            home.run("gc")

    def places() -> dict[Home, str | None]:
        where = {home: state(home, name) for home in homes}
        assert sum(found in ALIVE for found in where.values()) <= 1, where
        found = {home: each for home, each in where.items() if each is not None}
        return found if len(found) == 1 else {}

    # A receiver whose sender was killed removes what it has by itself.
    where = wait_until(places)
    on = [home for home, found in where.items() if found in ALIVE]
    if not on:
        off = list(where)
        off[0].run("start", name)
        on = off
    tidy(*homes)
    return on[0]


def check_disks(home: Home, name: str) -> None:
    """`qemu-img check` of the disks of a VM that is off."""
    wait_until(lambda: state(home, name) == "off")
    for disk in home.path.glob(f"state/vms/{name}/disks/*.qcow2"):
        argv = ["qemu-img", "check", "-q", str(disk)]
        done = subprocess.run(argv, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
