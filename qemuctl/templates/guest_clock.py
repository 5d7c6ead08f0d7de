"""Whether a guest's clock runs as fast as the host's.

A kernel measures its processor's clock at boot. On a host that is busy in that
moment an emulated guest may misjudge it several times over, and every fork of it
would live by that.
"""

from __future__ import annotations

import asyncio
import time

from qemuctl.errors import TemplateError
from qemuctl.guest.agent import Agent, makes_sense
from qemuctl.structs import Struct

# Seconds between two looks, and how far the rate may be from the host's.
_APART = 0.5
_TOLERANCE = 1.5


class Reading(Struct, kw_only=False):
    """The guest's uptime in seconds, asked for between two moments of the host's."""

    before: float
    uptime: float
    after: float


async def read_clock(agent: Agent) -> Reading:
    """Reads /proc/uptime of a Linux guest. Raises AgentError, WaitTimeout."""
    before = time.monotonic()
    result = await agent.run(["cat", "/proc/uptime"])
    with makes_sense("cat /proc/uptime"):
        return Reading(before, float(result.text.split()[0]), time.monotonic())


async def check_clock(agent: Agent, earlier: Reading) -> None:
    """Raises TemplateError when the guest's clock has not kept step with the host's
    since a reading; AgentError, WaitTimeout."""
    # Time itself is what is measured here.
    await asyncio.sleep(max(0.0, earlier.after + _APART - time.monotonic()))
    check_rate(earlier, await read_clock(agent))


def check_rate(earlier: Reading, later: Reading) -> None:
    """Raises TemplateError when the clock is too fast or slow between two readings,
    whatever took its time on the way to the guest."""
    passed = later.uptime - earlier.uptime
    if passed < 0:
        return  # it was booted once more
    least, most = later.before - earlier.after, later.after - earlier.before
    if passed > most * _TOLERANCE or passed < least / _TOLERANCE:
        rate = 2 * passed / (least + most)
        raise TemplateError(
            f"its guest's clock runs {rate:.1f} times as fast as the host's",
            hint="its kernel measured the processor while the host was busy: try again",
        )
