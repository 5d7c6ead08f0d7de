"""What talks to the inside of a guest: its agent, its console, copies of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.guest.agent import Agent

__getattr__ = exports(
    __name__,
    {
        "Agent": "qemuctl.guest.agent",
    },
)

__all__ = [
    "Agent",
]
