"""Reading the events that QEMU itself writes into a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from qemuctl import bounded
from qemuctl.qmp import Event, eventlog, eventstream
from qemuctl.qmp.events import GuestPanicked, Shutdown, VserportChange

TIMEOUT = 60.0
RETURN = b'{"return": {}}\n'
STOP = b'{"timestamp": {"seconds": 10, "microseconds": 500000}, "event": "STOP"}\n'


def line(name: str, **data: Any) -> bytes:
    return json.dumps({"event": name, "data": data}).encode() + b"\n"


def append(path: Path, *pieces: bytes) -> None:
    with path.open("ab") as file:
        file.writelines(pieces)


def names(events: Iterable[Event]) -> list[str]:
    return [event.name for event in events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.out"
    eventlog.prepare(tmp_path / "events.in", path)
    return path


def test_qemu_is_given_one_negotiation_to_read(path: Path) -> None:
    text = (path.parent / "events.in").read_text()
    assert json.loads(text) == {"execute": "qmp_capabilities"}
    assert path.read_bytes() == b""


def test_a_new_run_begins_with_an_empty_file(path: Path) -> None:
    path.write_bytes(STOP)
    eventlog.prepare(path.parent / "events.in", path)
    assert list(eventlog.past(path)) == []


def test_events_are_read_with_name_data_and_time(path: Path) -> None:
    append(path, STOP, line("RESET", guest=True, reason="guest-reset"))
    stop, reset = eventlog.past(path)
    assert stop == Event("STOP", {}, 10.5)
    assert reset.data == {"guest": True, "reason": "guest-reset"}


def test_there_are_none_without_a_file(tmp_path: Path) -> None:
    assert list(eventlog.past(tmp_path / "none")) == []


@pytest.mark.parametrize(
    "rubbish",
    [
        b'{"QMP": {"version": {}}}\n',
        RETURN,
        b"\n",
        b"rubbish\n",
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b"null\n",
        b'{"event": 5}\n',
        b'{"event": null}\n',
    ],
)
def test_what_is_no_event_is_skipped(path: Path, rubbish: bytes) -> None:
    append(path, STOP, rubbish, line("RESUME"))
    assert names(eventlog.past(path)) == ["STOP", "RESUME"]


def test_an_event_that_was_cut_short_by_a_kill_is_skipped(path: Path) -> None:
    append(path, STOP, line("SHUTDOWN", guest=True)[:-9])
    assert names(eventlog.past(path)) == ["STOP"]


async def test_the_stream_has_what_was_and_what_comes(path: Path) -> None:
    append(path, RETURN, STOP)
    async with aclosing(eventstream.stream(path)) as events, asyncio.timeout(TIMEOUT):
        assert (await anext(events)).name == "STOP"
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        whole = line("RESUME")
        append(path, whole[:5])
        append(path, whole[5:])
        assert (await waiting).name == "RESUME"


async def test_upcoming_is_the_next_one_and_not_an_earlier_one(path: Path) -> None:
    append(path, line("RESET", number=1))
    waiting = eventstream.upcoming(path, "RESET")
    append(path, STOP, line("RESET", number=2), line("RESET", number=3))
    async with asyncio.timeout(TIMEOUT):
        assert (await waiting).data == {"number": 2}


async def test_upcoming_counts_from_the_call_and_not_from_the_await(
    path: Path,
) -> None:
    waiting = eventstream.upcoming(path, "STOP")
    append(path, STOP)
    async with asyncio.timeout(TIMEOUT):
        assert (await waiting).at == 10.5


async def test_upcoming_counts_an_event_that_is_half_written_as_next(
    path: Path,
) -> None:
    append(path, STOP, STOP[:20])
    waiting = eventstream.upcoming(path, "STOP")
    append(path, STOP[20:])
    async with asyncio.timeout(TIMEOUT):
        await waiting


def test_typed_events_take_their_members_and_leave_the_rest() -> None:
    data = {"guest": True, "reason": "guest-shutdown", "later": 1}
    assert Shutdown.of(Event("SHUTDOWN", data)) == Shutdown(
        guest=True, reason="guest-shutdown"
    )
    change = VserportChange.of(Event("VSERPORT_CHANGE", {"id": "a", "open": True}))
    assert (change.id, change.open) == ("a", True)
    panic = Event("GUEST_PANICKED", {"action": "pause", "info": {}})
    assert GuestPanicked.of(panic).action == "pause"


def test_old_events_are_trimmed_while_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events.out"
    line = b'{"event": "RTC_CHANGE", "data": {"n": "%07d"}}\n'
    with path.open("wb", buffering=0) as writer:
        writer.write(b"".join(line % number for number in range(40_000)))
        bounded.trim(path, most=2 * 1024 * 1024)
        assert len(list(eventlog.past(path))) == 40_000  # it was not too long
        bounded.trim(path, most=256 * 1024)
        assert path.stat().st_blocks * 512 < 256 * 1024
        assert bounded.start(path) > 0
        writer.write(line % 40_000)
    kept = [int(event.data["n"]) for event in eventlog.past(path)]
    assert kept[-1] == 40_000
    assert kept == list(range(kept[0], 40_001))
    assert 1_000 < len(kept) < 6_000


async def test_a_trimmed_file_is_followed_from_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "events.out"
    line = b'{"event": "RTC_CHANGE"}\n'
    path.write_bytes(line * 40_000)
    bounded.trim(path, most=256 * 1024)
    waiting = eventstream.upcoming(path, "STOP")
    with path.open("ab") as writer:
        writer.write(b'{"event": "STOP"}\n')
    assert (await waiting).name == "STOP"


def test_trimming_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    bounded.trim(tmp_path / "nothing")
