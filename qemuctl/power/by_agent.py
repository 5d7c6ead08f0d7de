"""Asking a guest's agent to shut down or reboot (guest-shutdown)."""

from __future__ import annotations

import contextlib

from qemuctl.connection.connection import Connection
from qemuctl.errors import AgentError, AgentRefused, WaitTimeout

AGENT_PATIENCE = 1.0


async def agent_answers(vm: Connection) -> bool:
    """Whether the guest's agent answers within a second (guest-ping)."""
    try:
        await vm.agent.ping(timeout=AGENT_PATIENCE)
    except (AgentError, WaitTimeout):
        return False
    return True


async def ask_agent(vm: Connection, mode: str) -> bool:
    """Asks the agent to shut down; whether it did not refuse."""
    # No reply means that it works (guest-shutdown's own documentation);
    # the channel may close before, when the guest is quick.
    with contextlib.suppress(WaitTimeout):
        try:
            await vm.agent.request("guest-shutdown", {"mode": mode}, timeout=0.5)
        except AgentRefused:
            return False
        except AgentError:
            pass
    return True
