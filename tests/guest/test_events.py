"""`events` with real QEMUs: what happens is told, at once and with the VM's name."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.guest.conftest import Home

Next = Callable[[], dict[str, Any]]


def create(home: Home, boot_sector: Path, *names: str) -> None:
    disk = boot_sector.with_name("sector.raw")
    disk.write_bytes(boot_sector.read_bytes())
    for name in names:
        home.run("create", name, "--memory", "16M", "--nic", "none",
                 "--disk", f"path={disk},format=raw,readonly=true")  # fmt: skip


@contextmanager
def events(home: Home, *options: str) -> Iterator[Next]:
    """A function that gives the next event of a command that runs."""
    with home.popen("events", "--json", *options, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        stdout = process.stdout
        yield lambda: dict(json.loads(stdout.readline()))
        process.terminate()
        assert process.wait(60) == 143


def skip_to(following: Next, vm: str, name: str) -> dict[str, Any]:
    while True:
        event = following()
        if (event["vm"], event["event"]) == (vm, name):
            return event


def test_events_of_all_vms_come_at_once_and_later_vms_join(
    here: Home, boot_sector: Path
) -> None:
    create(here, boot_sector, "one")
    here.run("start", "one", "--paused")
    with events(here, "--since", "1h") as following:
        here.run("resume", "one")
        assert skip_to(following, "one", "RESUME")["data"] == {}
        create(here, boot_sector, "two")
        here.run("start", "two")
        skip_to(following, "two", "RESUME")
        before = time.time()
        here.run("pause", "two")
        event = skip_to(following, "two", "STOP")
        assert before <= event["at"] <= time.time()
        assert set(event) == {"vm", "event", "data", "at"}
        # A VM that is started again goes on.
        here.run("stop", "two", "--timeout", "0")
        shutdown = skip_to(following, "two", "SHUTDOWN")
        assert shutdown["data"]["guest"] is False
        here.run("start", "two")
        skip_to(following, "two", "RESUME")
        # A throwaway one joins, and says its last words.
        here.run("kill", "two")
        here.run("rename", "two", "three")
        here.run("start", "three")
        skip_to(following, "three", "RESUME")
    here.run("kill", "one")
    here.run("kill", "three")


def an_hour_earlier(file: Path) -> None:
    """Moves the events of a log into the past, in the file that QEMU has open."""
    stamp = re.compile(rb'(?<="seconds": )\d+')
    text = stamp.sub(lambda found: b"%d" % (int(found[0]) - 3600), file.read_bytes())
    with file.open("r+b") as log:
        log.write(text)


def test_what_is_past_is_merged_by_time_and_cut_by_since(
    here: Home, boot_sector: Path
) -> None:
    create(here, boot_sector, "one", "two")
    for name in ("one", "two"):
        here.run("start", name)
    here.run("pause", "one")
    here.run("pause", "two")
    for name in ("one", "two"):
        an_hour_earlier(here.path / f"state/vms/{name}/events.out")
    here.run("resume", "one")
    with events(here, "--since", "2h") as following:
        found = [following() for _ in range(5)]
    assert found == sorted(found, key=lambda event: float(event["at"]))
    assert [(x["vm"], x["event"]) for x in found] == [
        ("one", "RESUME"), ("two", "RESUME"), ("one", "STOP"), ("two", "STOP"),
        ("one", "RESUME"),
    ]  # fmt: skip
    with events(here, "--since", "30m") as following:
        assert following()["vm"] == "one"
    with events(here, "two", "--since", "2h") as following:
        assert [following()["vm"] for _ in range(2)] == ["two", "two"]
    for name in ("one", "two"):
        here.run("kill", name)


def test_it_ends_with_the_vms_that_were_named_and_with_its_reader(
    here: Home, boot_sector: Path
) -> None:
    create(here, boot_sector, "one")
    here.run("start", "one")
    command = shlex.join(here.command("events"))
    for script in (f"{command} | true", f"{command} --json --since 1h | head -n 1"):
        shell = subprocess.run(
            ["bash", "-c", script], env=here.env, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert shell.stderr == b""
    with here.popen(
        "events", "one", "--since", "1h", stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.endswith("  one  RESUME\n")
        assert time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
        here.run("kill", "one")
        here.run("rm", "one")
        assert process.wait(60) == 0


def test_bad_input_says_why(here: Home) -> None:
    assert "no such VM: nobody" in here.words("events", "nobody", check=1)
    words = here.words("events", "--since", "soon", check=2)
    assert "not a time: 'soon'" in words
    assert "10m" in words
