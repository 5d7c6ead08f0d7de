"""How fast a pool may be filled: what the host has, and what went wrong before."""

from __future__ import annotations

import time
from collections.abc import Callable

from qemuctl.host.resources import available_memory, cpu_count, total_memory
from qemuctl.units import MIB

# A parked fork that lives this many seconds died of something else than its start.
_YOUNG = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
# No event that every kernel has tells when memory becomes free.
_LOOK_AT_MEMORY = 1.0


class Pace:
    """Says when the next fork may be started.

    ``clock`` gives seconds, ``available`` the bytes that are free on the host.
    """

    def __init__(
        self,
        *,
        cpus: int | None = None,
        reserve: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        available: Callable[[], int] = available_memory,
    ) -> None:
        self._cpus = cpus or cpu_count()
        if reserve is None:
            reserve = max(512 * MIB, total_memory() // 20)
        self.reserve = reserve
        self._clock, self._available = clock, available
        self._cost = 0
        self._failures = 0
        self._not_before = 0.0

    def at_once(self, waiting: int) -> int:
        """How many may be starting: each takes a CPU, and what only fills up
        leaves half of them to others."""
        return max(1, self._cpus // 2, min(waiting, self._cpus))

    def pause(self, starting: int = 0) -> float:
        """Seconds until it is worth looking again; 0 when one may be started now,
        ``starting`` being on their way."""
        left = self._not_before - self._clock()
        if left > 0:
            return left
        return _LOOK_AT_MEMORY if self.short_of_memory(starting) else 0.0

    def short_of_memory(self, starting: int = 0) -> bool:
        """Whether one more, with those on their way, would eat into what is kept
        free."""
        return self._available() - self._cost * (starting + 1) < self.reserve

    def cost(self, bytes_: int) -> None:
        """Counts what a parked fork was seen to take; the most counts."""
        self._cost = max(self._cost, bytes_)

    def failed(self) -> None:
        """After failures in a row the pauses grow."""
        self._failures += 1
        pause = _FIRST_PAUSE * 2 ** (min(self._failures, 20) - 1)
        self._not_before = self._clock() + min(pause, _LONGEST_PAUSE)

    def died(self, age: float) -> None:
        """For a parked fork that died, ``age`` in seconds."""
        if age < _YOUNG:
            self.failed()
        else:
            self.worked()

    def worked(self) -> None:
        self._failures, self._not_before = 0, 0.0
