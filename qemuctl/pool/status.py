"""How a pool is doing, in numbers."""

from __future__ import annotations

from qemuctl.structs import Struct


class Status(Struct):
    """``parked`` are ready, ``starting`` on their way; the others count from the
    pool's beginning: forks that were handed out, started, and that died while
    parked. ``memory`` is what the parked ones take of the host, in bytes, what they
    share divided among them (PSS). ``problem``: why it cannot be filled now.
    """

    template: str
    size: int = 0
    parked: int = 0
    starting: int = 0
    handed_out: int = 0
    started: int = 0
    deaths: int = 0
    memory: int = 0
    problem: str | None = None
