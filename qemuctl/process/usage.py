"""What a process takes of the host, as proc(5) tells it.

Read directly: who looks at fifty VMs every second cannot afford a library's
objects for each of them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from qemuctl.process.identity import Identity
from qemuctl.structs import Struct

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(Struct):
    """CPU time of all threads since the start, and memory that is resident."""

    cpu_seconds: float
    resident_bytes: int


def clock() -> float:
    """Seconds since the host's boot, the clock of `started_at`: nobody sets it, and it
    is the same in every process (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def started_at(process: Identity) -> float:
    """When a process of this boot was started, by `clock`."""
    return process.start_ticks / _TICKS_PER_SECOND


def usage(process: Identity) -> Usage | None:
    """The usage of a process; None when it has ended (proc_pid_stat(5))."""
    fields = _stat(f"/proc/{process.pid}/stat")
    if fields is None or int(fields[19]) != process.start_ticks:
        return None
    return Usage(cpu_seconds=_seconds(fields), resident_bytes=int(fields[21]) * _PAGE)


def thread_seconds(pid: int, thread: int) -> float | None:
    """CPU seconds of one thread; None when there is no such thread any more."""
    fields = _stat(f"/proc/{pid}/task/{thread}/stat")
    return None if fields is None else _seconds(fields)


def proportional_bytes(pid: int) -> int | None:
    """Memory of a process, what it shares divided by those who share it (Pss of
    smaps_rollup); None when it has ended or is not ours to see.

    The kernel walks the page tables for it: some 15 ms for each GiB.
    """
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def swapped_bytes(pid: int) -> int:
    """Memory of a process that the host has swapped out (VmSwap of proc_pid_status(5));
    0 when it has ended."""
    try:
        return parse_swapped(Path(f"/proc/{pid}/status").read_bytes())
    except OSError:
        return 0


def parse_swapped(status: bytes) -> int:
    """The bytes of VmSwap in the text of a /proc/PID/status; 0 where it has none."""
    for line in status.splitlines():
        if line.startswith(b"VmSwap:"):
            return int(line.split()[1]) * 1024
    return 0


def _stat(path: str) -> list[bytes] | None:
    """The fields from the third on: the second, the name, may hold anything."""
    try:
        # Half the time of Path.read_bytes.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, 4096).rpartition(b")")[2].split()
        finally:
            os.close(fd)
    except OSError:
        return None
    return None if not fields or fields[0] in b"ZX" else fields


def _seconds(fields: list[bytes]) -> float:
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
