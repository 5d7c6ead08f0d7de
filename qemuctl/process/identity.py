"""Who a process is: pid, start time and boot; a pid alone may be recycled."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from pathlib import Path

from qemuctl.structs import Struct


@functools.cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None for a zombie.

    proc_pid_stat(5), fields 3 (state) and 22 (starttime). The time since boot
    does not move when somebody sets the clock.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name (field 2) may hold spaces and brackets: count from its end.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class Identity(Struct, kw_only=False):
    """One process, for good: no other one ever equals it."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a living process; None if there is none."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return self.boot_id == boot_id() and _start_ticks(self.pid) == self.start_ticks

    def open(self) -> int | None:
        """A pidfd (pidfd_open(2)); None when the process has ended."""
        # Its pid may be that of a thread by now, which pidfd_open(2) refuses.
        if not self.alive():
            return None
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        # Checked after opening: from here on the descriptor cannot be another's.
        if self.alive():
            return fd
        os.close(fd)
        return None

    def signal(self, number: signal.Signals) -> bool:
        """Sends a signal to this process and no other; False when it is gone."""
        fd = self.open()
        if fd is None:
            return False
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
                return True
            return False
        finally:
            os.close(fd)
