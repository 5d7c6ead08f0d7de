"""How long a guest stood still, by its own clock.

A guest's clock does not go while the guest does not. How far it is behind the host's
before and after tells how long that was, if both hosts' clocks agree.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from qemuctl.connection.agent_port import agent_port_open
from qemuctl.errors import QemuctlError

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

_PATIENCE = 1.0
_NS = 1_000_000_000


async def guest_lag(vm: Vm) -> float | None:
    """By how many seconds the guest's clock is behind the host's (guest-get-time);
    None where no agent tells."""
    if not agent_port_open(vm.paths):
        return None
    with contextlib.suppress(QemuctlError):
        await vm.agent.ping(timeout=_PATIENCE)
        before = time.time()
        told: Any = await vm.agent.request("guest-get-time", timeout=_PATIENCE)
        after = time.time()
        if isinstance(told, int):
            return (before + after) / 2 - told / _NS
    return None


def behind(before: float | None, after: float | None) -> float | None:
    """How long it stood still, from how far it was behind before and after."""
    if before is None or after is None:
        return None
    return round(max(after - before, 0.0), 3)
