"""What talks to the inside of a guest: its agent, its serial console, ssh, copies.

`agent` is a client of qemu-ga, `info` asks it about the system, `stream` runs a
command with streams, `console` is the serial port. Files go by scripts in the guest's
shell (`conversation`), through a port of their own (`port`) or through `ssh`: `copy`
for one file, `tree` for a folder. What a guest says is checked; it is trusted with
nothing.

It knows sockets and addresses, no VM. Start with `agent`.
"""

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
