"""Events of many VMs from their files: old ones in order, new ones as they come."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from qemuctl.cli.events import _line, _moment
from qemuctl.errors import NotFound, UsageError
from qemuctl.paths import VmPaths, private_dir
from qemuctl.qmp import Event, eventlog
from qemuctl.vm import all_events as feed_module
from qemuctl.vm.all_events import Named, feed

TIMEOUT = 60.0
GREETING = b'{"QMP": {"version": {}}}\n{"return": {}}\n'

pytestmark = pytest.mark.usefixtures("bare_home")


@pytest.fixture(params=["inotify", "no instance left", "no watch left"])
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with inotify, and where the kernel has none to give."""

    def no_instance(**_options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def no_watch(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if request.param == "no instance left":
        monkeypatch.setattr(feed_module, "Inotify", no_instance)
    elif request.param == "no watch left":
        monkeypatch.setattr(feed_module.Inotify, "add_watch", no_watch)


def make(name: str) -> VmPaths:
    paths = VmPaths.of(name)
    private_dir(paths.state)
    paths.spec.touch()
    return paths


def say(paths: VmPaths, name: str, at: float | None = None, **data: object) -> None:
    """As QEMU does: one line, one write."""
    at = time.time() if at is None else at
    stamp = {"seconds": int(at), "microseconds": int(at % 1 * 1e6)}
    message = {"timestamp": stamp, "event": name, "data": data}
    with paths.events.open("ab") as file:
        file.write(json.dumps(message).encode() + b"\n")


async def take(events: AsyncGenerator[Named, None], count: int) -> list[str]:
    """The next events, as VM:NAME."""
    found = []
    async with asyncio.timeout(TIMEOUT):
        while len(found) < count:
            named = await anext(events)
            found.append(f"{named.vm}:{named.event.name}")
    return found


async def begun(events: AsyncGenerator[Named, None]) -> asyncio.Task[list[str]]:
    """A task that waits for the next one, and has begun to."""
    task = asyncio.create_task(take(events, 1))
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


async def test_what_is_past_comes_in_the_order_of_time() -> None:
    web, db = make("web"), make("db")
    for paths, shift in ((web, 0.0), (db, 0.5)):
        eventlog.prepare(paths.events_in, paths.events)
        for number in range(3):
            say(paths, f"E{number}", 1000 + number + shift)
    async with aclosing(feed(since=1000.5)) as events:
        assert await take(events, 5) == ["db:E0", "web:E1", "db:E1", "web:E2", "db:E2"]


@pytest.mark.usefixtures("watching")
async def test_without_since_only_new_ones_come() -> None:
    web = make("web")
    say(web, "OLD")
    async with aclosing(feed()) as events:
        task = await begun(events)
        say(web, "NEW")
        assert await task == ["web:NEW"]


@pytest.mark.usefixtures("watching")
async def test_a_vm_that_comes_later_joins_and_its_first_events_are_not_missed() -> (
    None
):
    async with aclosing(feed()) as events:
        task = await begun(events)
        web = make("web")
        say(web, "FIRST")
        say(web, "SECOND")
        assert await task + await take(events, 1) == ["web:FIRST", "web:SECOND"]
        # One that was made long before its first start.
        db = make("db")
        task = await begun(events)
        say(db, "FIRST")
        assert await task == ["db:FIRST"]


async def test_a_start_empties_the_file_and_the_events_go_on() -> None:
    web = make("web")
    say(web, "SHUTDOWN", note="x" * 200)
    async with aclosing(feed(["web"])) as events:
        task = await begun(events)
        eventlog.prepare(web.events_in, web.events)
        say(web, "RESUME")
        assert await task == ["web:RESUME"]


async def test_last_words_of_a_vm_that_goes_are_heard() -> None:
    web, db = make("web"), make("db")
    say(web, "OLD")
    async with aclosing(feed(["web"])) as events:
        task = await begun(events)
        say(web, "SHUTDOWN")
        web.state.rename(web.state.with_name(".removed-web-1"))
        say(db, "OTHER")
        assert await task == ["web:SHUTDOWN"]
        # All that were named have gone.
        assert [named async for named in events] == []


async def test_a_vm_with_a_new_name_does_not_tell_its_past_again() -> None:
    web = make("web")
    async with aclosing(feed(since=0)) as events:
        task = await begun(events)
        say(web, "ONE")
        assert await task == ["web:ONE"]
        task = await begun(events)
        web.state.rename(web.state.with_name("site"))
        await asyncio.sleep(0.05)
        say(VmPaths.of("site"), "TWO")
        assert await task == ["site:TWO"]


async def test_rubbish_holes_and_half_lines_do_no_harm() -> None:
    web = make("web")
    web.events.write_bytes(GREETING)
    async with aclosing(feed()) as events:
        task = await begun(events)
        with web.events.open("ab") as file:
            file.write(b"rubbish\n[]\n7\n" + b"\0" * 500_000)
            file.write(b'{"event": "WHOLE"}\n{"event": "HA')
        assert await task == ["web:WHOLE"]
        task = await begun(events)
        with web.events.open("ab") as file:
            file.write(b'LF"}\n')
        assert await task == ["web:HALF"]


async def test_a_name_that_no_vm_has_is_an_error() -> None:
    make("web")
    with pytest.raises(NotFound) as caught:
        await anext(feed(["wob"]))
    assert caught.value.hint == "did you mean web?"


async def test_only_the_vms_that_were_named_are_heard() -> None:
    web, db = make("web"), make("db")
    async with aclosing(feed(["db"])) as events:
        task = await begun(events)
        say(web, "NO")
        say(db, "YES")
        assert await task == ["db:YES"]


# -- what is printed ---------------------------------------------------------------


def test_a_line_has_local_time_the_vms_name_and_no_control_characters() -> None:
    data = {"open": True, "name": "a\x1b[2J\n"}
    line = _line(Named("web", Event("VSERPORT_CHANGE", data, 1700000000.25)))
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1700000000))
    assert line == (
        rf'{stamp}.250  web  VSERPORT_CHANGE  open=true name="a\u001b[2J\n"'
    )
    assert _line(Named("web", Event("STOP"))).endswith("web  STOP")


def test_since_is_a_duration_or_a_time() -> None:
    assert abs(_moment("10m") - (time.time() - 600)) < 60
    assert _moment("2026-01-31T12:00:00+00:00") == 1769860800
    local = time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, -1))
    assert _moment("2026-01-31 12:00") == local
    for text in ("soon", "", "-5m", "2026-13-01", "yesterday"):
        with pytest.raises(UsageError, match="not a time"):
            _moment(text)


def test_it_ends_quietly_as_soon_as_nobody_reads(bare_home: Path) -> None:
    make("web")
    argv = [sys.executable, "-m", "qemuctl", "events"]
    reader, writer = os.pipe()
    with subprocess.Popen(argv, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        time.sleep(0.5)
        assert process.poll() is None
        os.close(reader)
        _, words = process.communicate(timeout=60)
    assert (process.returncode, words) == (141, b"")


async def test_the_hole_of_old_events_is_not_read() -> None:
    web = make("web")
    with web.events.open("wb") as file:
        file.truncate(2**40)
    say(web, "LATE")
    async with aclosing(feed(since=0)) as events:
        assert await take(events, 1) == ["web:LATE"]
