"""Coroutines that a loop in another thread carries out.

Whoever asked waits for the outcome; interrupted, by Ctrl-C, by a time limit or
by being cancelled, it calls the work off and goes on once that has been undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent import futures
from typing import Any, Generic, TypeVar

from qemuctl.errors import StateError, WaitTimeout

T = TypeVar("T")

# Seconds for undoing what was called off: a VM ends in fewer.
_UNDOING = 60.0


class LoopThread:
    """An event loop in a thread of its own, which starts when it is first needed.

    The thread is a daemon: a program that forgets it ends all the same.
    """

    def __init__(self, name: str = "qemuctl") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._begun: futures.Future[_Life] = futures.Future()
        self._closed = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs. Raises StateError after `close`."""
        with self._lock:
            if self._closed:
                raise _over()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=self._name, daemon=True
                )
                self._thread.start()
        return self._begun.result().loop

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            life = _Life(runner.get_loop())
            self._begun.set_result(life)
            runner.run(life.end.wait())

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """The result of a coroutine, from any thread but the loop's own.

        Raises what it raises, TimeoutError when it has not ended in ``timeout``
        seconds, StateError after `close`. An exception that comes in the calling
        thread meanwhile, such as KeyboardInterrupt, calls the work off.
        """
        # An exception may come at any point: what was sent is in here first.
        sent: list[_Errand[T]] = []
        try:
            self._send(work, timeout, sent)
            return sent[0].outcome.result()
        except BaseException:
            if not sent:
                work.close()
            elif not sent[0].outcome.done():
                sent[0].call_off()
                futures.wait([sent[0].outcome], _UNDOING)
            raise

    def _send(
        self,
        work: Coroutine[Any, Any, T],
        timeout: float | None,
        sent: list[_Errand[T]],
    ) -> None:
        loop = self.loop
        if threading.current_thread() is self._thread:
            raise StateError("wait", "running", "this is the loop's own thread")
        with self._lock:  # what is sent before `close` begins before the end
            if self._closed:
                raise _over()
            errand = _Errand(work, loop, timeout)
            sent.append(errand)
            errand.begin()

    def close(self) -> None:
        """Cancels all that the loop still does and ends the thread.

        Raises WaitTimeout when a task does not let itself be cancelled.
        """
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is None or not thread.is_alive():
            return
        life = self._begun.result()
        with contextlib.suppress(RuntimeError):  # it ended in this moment
            life.loop.call_soon_threadsafe(life.end.set)
        thread.join(_UNDOING)
        if thread.is_alive():
            raise WaitTimeout("the tasks that were cancelled", _UNDOING)


class _Life:
    """A loop, and what ends it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.end = asyncio.Event()


async def across(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """The result of a coroutine that ``loop`` carries out, this one or another
    thread's.

    When the caller is cancelled, the work has ended before it hears of it. Raises
    what the work raises, and StateError when the loop has ended.
    """
    if loop is asyncio.get_running_loop():
        return await work
    errand = _Errand(work, loop)
    errand.begin()
    outcome = asyncio.wrap_future(errand.outcome)
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        if not outcome.done():
            errand.call_off()
        while not outcome.done():
            # However often it is cancelled: the work is still being undone.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({outcome})
        outcome.exception()  # which nobody needs to hear of
        raise


class _Errand(Generic[T]):
    """A coroutine in a loop of another thread.

    ``outcome`` is there once it has ended, and all that it undoes is undone.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, T],
        loop: asyncio.AbstractEventLoop,
        timeout: float | None = None,
    ) -> None:
        self.outcome: futures.Future[T] = futures.Future()
        self.outcome.set_running_or_notify_cancel()  # nobody cancels the future
        self._work, self._loop, self._timeout = work, loop, timeout
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        """Has the loop begin. Raises StateError when it has ended."""
        try:
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError as error:
            self._work.close()
            raise _over() from error

    def call_off(self) -> None:
        """Cancels the work, in its own loop."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:  # the loop has ended, and the work with it
            if not self.outcome.done():
                self.outcome.set_exception(asyncio.CancelledError())

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._limited())
        self._task.add_done_callback(self._ended)

    async def _limited(self) -> T:
        async with asyncio.timeout(self._timeout):
            return await self._work

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif not self.outcome.done():  # it was called off before it was begun
            self._work.close()
            self.outcome.set_exception(asyncio.CancelledError())

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._work.close()  # cancelled before it began, it would complain
        if task.cancelled():
            self.outcome.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


def _over() -> StateError:
    return StateError("do this", "ended", "the event loop has ended")
