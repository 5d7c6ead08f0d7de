"""What the guest's balloon driver says of the guest's memory.

QEMU asks the driver at an interval that is a property of the device, 0 at
first: then there is only what the driver sent when it was loaded. Without a
driver every value is 2^64-1 and ``last-update`` is 0.
"""

from __future__ import annotations

from typing import Any

from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError
from qemuctl.qmp.commands import QomSet
from qemuctl.qmp.plug import QomGet
from qemuctl.structs import Struct

BALLOON = "/machine/peripheral/balloon"
# Seconds; each question wakes the guest.
POLL_EVERY = 5
_UNKNOWN = 2**64 - 1

STATS = QomGet(path=BALLOON, property="guest-stats")
INTERVAL = QomGet(path=BALLOON, property="guest-stats-polling-interval")
# The first question goes out at once.
POLL = QomSet(path=BALLOON, property="guest-stats-polling-interval", value=POLL_EVERY)


class GuestMemory(Struct):
    """The guest's memory as its own kernel counts it.

    ``at`` is when it said so, in seconds since the epoch; a value that its
    driver does not tell is None.
    """

    at: float
    free_bytes: int | None = None
    available_bytes: int | None = None
    total_bytes: int | None = None
    swap_in_bytes: int | None = None
    swap_out_bytes: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None

    @property
    def used_bytes(self) -> int | None:
        """What programs and kernel hold; caches that can be dropped are not in it."""
        left = self.free_bytes if self.available_bytes is None else self.available_bytes
        if self.total_bytes is None or left is None:
            return None
        return max(0, self.total_bytes - left)


def parsed(reply: Any) -> GuestMemory | None:
    """The reply to `STATS`; None when no driver has ever answered."""
    if not isinstance(reply, dict) or not reply.get("last-update"):
        return None
    stats = reply.get("stats") or {}

    def value(name: str) -> int | None:
        found = stats.get(f"stat-{name}")
        return None if found is None or found in (_UNKNOWN, -1) else int(found)

    return GuestMemory(
        at=float(reply["last-update"]),
        free_bytes=value("free-memory"),
        available_bytes=value("available-memory"),
        total_bytes=value("total-memory"),
        swap_in_bytes=value("swap-in"),
        swap_out_bytes=value("swap-out"),
        major_faults=value("major-faults"),
        minor_faults=value("minor-faults"),
    )


async def guest_memory(vm: Connection) -> GuestMemory | None:
    """What the guest's kernel says of its memory (qom-get guest-stats).

    None when there is no balloon, or no driver for it in the guest. The first
    call makes QEMU ask the driver every few seconds from then on; `at` tells
    how old the answer is. Raises as `Connection.execute` does.
    """
    try:
        if not await vm.execute(INTERVAL):
            await vm.execute(POLL)
        return parsed(await vm.execute(STATS))
    except CommandError:
        return None
