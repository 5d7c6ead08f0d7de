"""A loop in a thread of its own, and work that is carried out in another's loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from qemuctl.errors import StateError
from qemuctl.testing.loop import LoopThread, across


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


class Undone:
    """Work that goes on for ever, and how it was called off."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = False

    async def work(self, then: int | None = None) -> None:
        self.begun.set()
        try:
            if then is not None:
                signal.pthread_kill(threading.main_thread().ident or 0, then)
            await asyncio.Event().wait()
        finally:
            for _ in range(10):  # undoing takes a while
                await asyncio.sleep(0.01)
            self.over = True


async def name() -> str:
    return threading.current_thread().name


def test_the_thread_starts_when_it_is_needed_and_gives_results_and_errors() -> None:
    before = threading.active_count()
    thread = LoopThread("mine")
    assert threading.active_count() == before
    assert thread.call(name()) == "mine"
    assert thread.call(name(), timeout=60) == "mine"

    async def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        thread.call(fails())
    thread.close()
    assert threading.active_count() == before
    thread.close()
    LoopThread().close()


def test_what_takes_too_long_is_undone_before_the_caller_hears_of_it(
    thread: LoopThread,
) -> None:
    undone = Undone()
    with pytest.raises(TimeoutError):
        thread.call(undone.work(), timeout=0.05)
    assert undone.over


def test_an_interrupt_calls_the_work_off_and_waits_for_its_undoing(
    thread: LoopThread,
) -> None:
    undone = Undone()
    with pytest.raises(KeyboardInterrupt):
        thread.call(undone.work(then=signal.SIGINT))
    assert undone.over
    assert thread.call(name()) == "qemuctl"


def test_an_exception_of_a_signals_handler_calls_the_work_off(
    thread: LoopThread,
) -> None:
    def late(*_: object) -> None:
        raise LookupError("too late")

    before = signal.signal(signal.SIGUSR1, late)
    undone = Undone()
    try:
        with pytest.raises(LookupError, match="too late"):
            thread.call(undone.work(then=signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert undone.over


def test_closing_cancels_what_is_under_way_and_nothing_begins_after_it() -> None:
    thread, undone = LoopThread(), Undone()
    seen: list[BaseException] = []

    def call() -> None:
        try:
            thread.call(undone.work())
        except asyncio.CancelledError as error:
            seen.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert undone.begun.wait(10)
    thread.close()
    caller.join(10)
    assert undone.over
    assert len(seen) == 1
    with pytest.raises(StateError, match="loop has ended"):
        thread.call(name())


def test_a_loop_cannot_wait_for_itself(thread: LoopThread) -> None:
    async def inside() -> str:
        return thread.call(name())

    with pytest.raises(StateError, match="own thread"):
        thread.call(inside())


def test_child_processes_work_in_the_thread(thread: LoopThread) -> None:
    async def child() -> bytes:
        argv = [sys.executable, "-c", "print('hello')"]
        process = await asyncio.create_subprocess_exec(*argv, stdout=-1)
        return (await process.communicate())[0]

    assert thread.call(child(), timeout=60) == b"hello\n"


async def test_another_loops_task_gets_the_result_and_the_errors(
    thread: LoopThread,
) -> None:
    assert await across(name(), thread.loop) == "qemuctl"
    here = asyncio.get_running_loop()
    assert await across(name(), here) == threading.current_thread().name

    async def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await across(fails(), thread.loop)
    # The caller's own loop goes on meanwhile: each waits for all the others.
    barrier = asyncio.Barrier(9)
    async with asyncio.timeout(60):
        await asyncio.gather(*(across(barrier.wait(), thread.loop) for _ in range(9)))


async def test_a_cancelled_task_hears_of_it_when_the_other_loop_has_undone_it(
    thread: LoopThread,
) -> None:
    undone = Undone()
    task = asyncio.create_task(across(undone.work(), thread.loop))
    await asyncio.to_thread(undone.begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone.over
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await across(Undone().work(), thread.loop)


async def test_work_for_a_loop_that_has_ended_is_refused() -> None:
    thread = LoopThread()
    loop = thread.loop
    thread.close()
    with pytest.raises(StateError, match="loop has ended"):
        await across(name(), loop)
