"""What became of a guest, in a line or two: the first thing to read after a failure."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from qemuctl.errors import UnexpectedExit, WaitTimeout
from qemuctl.registry.records.outcome import Outcome

FINE = "nothing is known to be wrong with the guest: it runs"

_PANIC = re.compile(r"Kernel panic - not syncing: .*")
_OUT_OF_MEMORY = re.compile(r"Out of memory: Killed process .*|.*invoked oom-killer.*")
# What a program does to itself; the other signals come from outside.
_CRASHES = {
    -number
    for number in (
        signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
        signal.SIGSYS, signal.SIGTRAP,
    )
}  # fmt: skip
# pytest-timeout's own words; it has no exception of its own.
_TIME_LIMIT = re.compile(r"Timeout \(?>")


def verdict(
    ended: Outcome | None,
    error: BaseException | None,
    *,
    console: str,
    panicked: bool = False,
    host_ran_out: bool = False,
) -> str:
    """What became of the guest, as far as it can be told.

    ``ended`` is how QEMU ended (None while it runs), ``error`` what the test ended
    with, ``panicked`` whether QEMU said so (GUEST_PANICKED), ``host_ran_out`` whether
    the host's kernel has killed a process for want of memory meanwhile.
    """
    lines = [*_inside(console, panicked=panicked)]
    if ended is not None and not panicked:
        lines.append(_end(ended, host_ran_out=host_ran_out))
    lines += [*_told(error)]
    if not lines:
        lines.append(FINE)
    elif ended is None:
        lines.append("QEMU still ran then")
    return "\n".join(lines)


def never_ready(error: BaseException) -> str:
    """What is known of a guest of which nothing was seen but this error."""
    inside = _inside(last_words(error), panicked=False)
    return "\n".join([f"there was no guest: {error}", *inside])


def last_words(error: BaseException | None) -> str:
    """The end of the guest's console, where an error tells it."""
    if isinstance(error, UnexpectedExit):
        return error.log_tail
    return error.console_tail if isinstance(error, WaitTimeout) else ""


def _inside(console: str, *, panicked: bool) -> Iterator[str]:
    panic = _PANIC.search(console)
    if panicked or panic:
        yield "guest panic" + (f": {panic.group()}" if panic else "")
    killed = _OUT_OF_MEMORY.findall(console)
    if killed:
        yield f"out of memory in the guest: {killed[-1].strip()}"


def _end(ended: Outcome, *, host_ran_out: bool) -> str:
    if ended.status in _CRASHES:
        return f"QEMU crashed: {ended.text}"
    if ended.status == -signal.SIGKILL and host_ran_out:
        return f"out of memory on the host, whose kernel killed QEMU: {ended.text}"
    if ended.reason == "guest-shutdown" and ended.status == 0:
        return "the guest went off: it shut down by itself"
    return f"QEMU ended: {ended.text}"


def _told(error: BaseException | None) -> Iterator[str]:
    """What the test's exception, or one that led to it, says of the guest."""
    seen = error
    while seen is not None:
        if isinstance(seen, WaitTimeout):
            yield f"time-out: {seen.message}"
            return
        if isinstance(seen, TimeoutError) or _TIME_LIMIT.match(str(seen)):
            yield f"time-out: {seen}".rstrip(": ")
            return
        seen = seen.__cause__ or seen.__context__


def oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes this host's kernel has killed for want of memory
    (``oom_kill`` of /proc/vmstat); 0 when it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in vmstat.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
