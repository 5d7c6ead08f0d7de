"""Waits that take longer than people expect: they say what they wait for.

Who waits is often far below who can print. So whoever carries a command out says
once who is to be told; nobody, for a library.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from qemuctl.errors import HostError

SAY_AFTER = 3.0
"""Seconds of waiting after which people are told what for."""
# Seconds for a lock that its holder needs for a moment; one that was stopped in it
# must not stop all others.
_MOMENT = 30.0
_LOOK_EVERY = 0.05


def _nobody(_text: str) -> None:
    """There is nobody to tell."""


def _never() -> bool:
    """Nobody calls it off."""
    return False


_called_off: ContextVar[Callable[[], bool]] = ContextVar("called_off", default=_never)
_tell: ContextVar[Callable[[str], None]] = ContextVar("tell", default=_nobody)


def heard_by(tell: Callable[[str], None]) -> None:
    """Sets who gets lines for people from here on, in this task and those that it
    makes."""
    _tell.set(tell)


def called_off_by(asked: Callable[[], bool]) -> None:
    """Sets, in the context of a thread, what says that nobody wants its work any more:
    signals are the main thread's."""
    _called_off.set(asked)


@contextlib.contextmanager
def waiting_for(what: str, *, say_after: float | None = None) -> Iterator[None]:
    """For a block of a coroutine that waits: says what for, after some seconds."""
    seconds = SAY_AFTER if say_after is None else say_after
    words = f"waiting for {what} …"
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds, _tell.get(), words)
    try:
        yield
    finally:
        timer.cancel()


def lock_for_a_moment(fd: int, what: str, *, shared: bool = False) -> None:
    """Takes a lock (flock(2)) that others hold for a moment only; blocks.

    Raises HostError when ``what`` stays locked for half a minute, CancelledError when
    the user interrupts the command, or the thread's work is called off.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    begun, said = time.monotonic(), False
    with _signals_pending() as interrupted:
        while True:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(fd, kind | fcntl.LOCK_NB)
            waited = time.monotonic() - begun
            if interrupted():
                raise asyncio.CancelledError
            if waited > _MOMENT:
                raise HostError(
                    f"another process has locked {what} for {_MOMENT:g} s",
                    hint=f"see which one: fuser -v {what}",
                )
            if waited > SAY_AFTER and not said:
                said = True
                _tell.get()(f"waiting for another command that has locked {what} …")
            time.sleep(_LOOK_EVERY)


@contextlib.contextmanager
def _signals_pending() -> Iterator[Callable[[], bool]]:
    """For a block that blocks: a function that says whether a signal has come which
    ends a command. It takes effect behind the block: an event loop could not hear of
    it before, and Python repeats a system call that a signal has interrupted."""
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if threading.current_thread() is not threading.main_thread():
        yield _called_off.get()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        yield lambda: bool(signal.sigpending() & ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
