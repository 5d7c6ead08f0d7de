"""Waits that say what they wait for, and end when their user wants it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuctl import durable, waiting
from qemuctl.errors import HostError, QemuctlError
from qemuctl.home_id import made_id
from qemuctl.image.claim import claimed
from qemuctl.migration import following, storage
from qemuctl.migration.following import followed
from qemuctl.migration.storage import Storage
from qemuctl.thread import in_thread
from qemuctl.waiting import heard_by, lock_for_a_moment, waiting_for


@contextlib.contextmanager
def held(path: Path) -> Iterator[int]:
    """Another one has the lock; gives a descriptor to ask for it with."""
    with path.open("wb") as other, path.open("rb") as file:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield file.fileno()


@pytest.fixture
def told() -> Iterator[list[str]]:
    words: list[str] = []
    heard_by(words.append)
    yield words
    heard_by(lambda _: None)


def test_a_lock_that_nobody_gives_back_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(waiting, "SAY_AFTER", 0.05)
    monkeypatch.setattr(waiting, "_MOMENT", 0.2)
    with held(tmp_path / "lock") as fd, pytest.raises(HostError, match="/lock for"):
        lock_for_a_moment(fd, str(tmp_path / "lock"))
    assert len(told) == 1


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """A signal has come whose handler cannot run yet; it runs by the end."""
    handled: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: handled.append(number))
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
        with pytest.raises(asyncio.CancelledError):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        signal.signal(signal.SIGHUP, before)
    assert handled == [signal.SIGHUP]


@pytest.mark.parametrize("shared", [False, True])
def test_a_wait_for_a_lock_can_be_interrupted(tmp_path: Path, shared: bool) -> None:
    with held(tmp_path / "lock") as fd, interrupted():
        lock_for_a_moment(fd, "x", shared=shared)


def test_so_can_one_for_a_writer_that_was_stopped(tmp_path: Path) -> None:
    with held(tmp_path / "note.new"), interrupted():
        durable.write(tmp_path / "note", "text")
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with interrupted():
        made_id(tmp_path)
    os.close(folder)


async def test_a_wait_for_a_lock_in_a_thread_ends_when_it_is_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_MOMENT", 3600.0)
    begun = threading.Event()

    def work(_: object) -> None:
        begun.set()
        lock_for_a_moment(fd, "x")

    with held(tmp_path / "lock") as fd:
        task = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_lock_that_is_free_is_taken(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("wb") as one, (tmp_path / "lock").open() as two:
        lock_for_a_moment(one.fileno(), "x", shared=True)
        lock_for_a_moment(two.fileno(), "x", shared=True)


async def test_a_long_wait_is_told_once_and_a_short_one_is_not(
    told: list[str],
) -> None:
    with waiting_for("nothing"):
        pass
    with waiting_for("the end", say_after=0.01):
        await asyncio.sleep(0.05)
    assert told == ["waiting for the end …"]


async def test_who_waits_for_a_claim_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(waiting, "SAY_AFTER", 0.01)
    with held(tmp_path / "lock"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), claimed(tmp_path / "lock"):
                pass
    assert told == [f"waiting for another command that has locked {tmp_path}/lock …"]


class Stuck:
    """A QMP session whose migration goes nowhere, and an end of its events."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.paused = asyncio.Event()

    async def execute(self, command: Any) -> Any:
        self.sent.append(command.NAME)
        if command.NAME == "migrate-pause":
            self.paused.set()
        return self._reply(command)

    def _reply(self, command: Any) -> Any:
        if command.NAME == "query-migrate":
            return command.result({"status": "postcopy-active"})
        if command.NAME == "query-jobs":
            job = {"id": "move-disk0", "type": "mirror", "status": "running",
                   "current-progress": 5, "total-progress": 9}  # fmt: skip
            return command.result([job])
        return []

    async def get(self) -> Any:
        from qemuctl.qmp import Event

        await self.paused.wait()
        return Event("MIGRATION", {"status": "postcopy-paused"}, 0.0)

    @contextlib.contextmanager
    def listen(self, *_names: str) -> Iterator[Any]:
        yield self


async def test_memory_that_does_not_follow_is_a_link_that_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "_STALL", 0.02)
    session: Any = Stuck()
    with pytest.raises(QemuctlError, match="link was lost"):
        await followed(session, session)
    assert session.sent[-1] == "migrate-pause"


async def test_disks_of_which_nothing_is_copied_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(storage, "_STALL", 0.02)
    session: Any = Stuck()
    disks: Any = (SimpleNamespace(id="disk0"),)
    with pytest.raises(QemuctlError, match="nothing has been copied"):
        await Storage(session, disks, {}).ready()
