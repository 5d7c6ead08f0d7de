"""SIGKILL at random moments, over and over."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuctl import paths
from tests.chaos.test_migrate_killed import CASES, homes, killed, two_homes
from tests.chaos.test_owner_killed import nothing
from tests.chaos.test_plugin_killed import TESTS, guests, owned_by
from tests.chaos.test_save_killed import Guest, guest, ran, settled
from tests.guest.conftest import Home
from tests.guest.inner_pytest import LEAN, left, project, running, workers
from tests.guest.saves import row
from tests.guest.templates import own_cache
from tests.soak.conftest import Soak

__all__ = ["guest", "homes", "two_homes"]

Until = Callable[..., object]
GONE_WITHIN = 20.0
# From the start of each command to its end, with something to spare, in seconds.
RUN, START, SAVE, MAKE, PYTEST = 4.0, 0.7, 1.2, 6.0, 3.0


def killed_after(home: Home, seconds: float, *words: object) -> None:
    """Runs a command in a process of its own, and kills it."""
    quiet = subprocess.DEVNULL
    process = home.popen(*words, stdout=quiet, stderr=quiet)
    time.sleep(seconds)
    process.kill()
    process.wait()


def test_owners(here: Home, soak: Soak, until: Until) -> None:
    for number in soak.rounds():
        size = soak.chance.choice(["8M", "64M"])
        words = "run", "tiny", "--disk", f"size={size}", "--", "sleep", "60"
        killed_after(
            here, soak.chance.uniform(0, RUN if number % 4 == 0 else 1), *words
        )
        until(lambda: nothing(here), GONE_WITHIN)


def test_starts(here: Home, soak: Soak, until: Until) -> None:
    here.run("create", "web", "--memory", "32M", "--disk", "size=8M")
    for _ in soak.rounds():
        killed_after(here, soak.chance.uniform(0, START), "start", "web")
        until(lambda: row(here, "web")["state"] in ("off", "running"), GONE_WITHIN)
        state = row(here, "web")["state"]
        soak.met[state] += 1
        if state == "off":
            here.run("start", "web")
        here.run("kill", "web")


@pytest.mark.parametrize("whom", ["command", "qemu"])
def test_saves(guest: Home, soak: Soak, whom: str) -> None:
    at = Guest(guest)
    at.work()
    for _ in soak.rounds():
        verb = soak.chance.choice(["save", "start"])
        if verb == "start":
            guest.run("save", "web")
        after = soak.chance.uniform(0.1, SAVE)
        if whom == "command":
            killed_after(guest, after, verb, "web")
        else:
            process = guest.popen(verb, "web", stderr=subprocess.DEVNULL)
            time.sleep(after)
            for qemu in guests(guest.path):
                qemu.kill()
            process.wait()
        soak.met[bring_back(guest, at, whom)] += 1
    guest.run("kill", "web")


def bring_back(home: Home, at: Guest, whom: str) -> str:
    state = settled(home)
    if state == "off" and not row(home, "web")["saved"]:
        # A guest that runs is lost with its QEMU, and only then.
        assert whom == "qemu"
        assert ran(home)
        home.run("start", "web", "--wait")
        at.boot()
        at.work()
        return "lost"
    if state != "running":
        home.run("start" if state == "off" else "resume", "web")
    at.check()
    at.work()
    return "saved" if state == "off" else state


def test_makers_of_templates(here: Home, soak: Soak, until: Until) -> None:
    make = "run", "tiny", "--memory", "160M", "--", "echo", "works"
    own_cache(here.path)
    kept = here.path / "cache/templates"
    for _ in soak.rounds():
        killed_after(here, soak.chance.uniform(0.1, MAKE), *make)
        until(lambda: nothing(here), GONE_WITHIN)
        assert len([path for path in kept.glob("*/*") if path.is_dir()]) <= 1
        soak.met["whole" if list(kept.glob("*/template.json")) else "half"] += 1
        if soak.chance.random() < 0.3:
            assert here.text(*make) == "works\n"
        if soak.chance.random() < 0.5:
            here.run("gc")


def test_pytests(here: Home, soak: Soak, until: Until, tmp_path: Path) -> None:
    folder = project(tmp_path / "project", TESTS)
    for number in soak.rounds():
        many = ["-n", "2"] if number % 3 else []
        # With room for one guest the second worker waits, and may be killed so.
        env = {"QEMUCTL_BUDGET_CPUS": soak.chance.choice("12")}
        with running(folder, "-q", *LEAN, *many, env=env) as process:
            time.sleep(soak.chance.uniform(0.3, PYTEST))
            soak.met["QEMU" if guests(here.path) else "no QEMU"] += 1
            if number % 3 == 2:
                victim = soak.chance.choice(workers(process))
                victim.kill()
                until(lambda: not owned_by(victim.pid), GONE_WITHIN)  # noqa: B023
                time.sleep(soak.chance.uniform(0, 0.5))
            process.kill()
            process.wait()
            until(lambda: not guests(here.path) and not left(), GONE_WITHIN)
    assert not list(paths.vms_dir().glob("*"))


def test_migrations(homes: tuple[Home, Home], soak: Soak) -> None:
    for _ in soak.rounds():
        party, phase = soak.chance.choice(CASES)
        killed(homes, party, phase)
        soak.met[f"{party} in {phase}"] += 1
