"""What `info` shows of a guest's inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qemuctl.registry.states import State

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

SILENT = "the agent does not answer"
NONSENSE = "the agent answers with nonsense"
ABSENT = "no agent runs in it"


async def guest_facts(vm: Vm, state: State) -> dict[str, Any] | str | None:
    """What the agent tells within a second, or why it does not; None when a guest that
    does not run is not asked at all."""
    from dataclasses import asdict

    from qemuctl.connection.agent_port import agent_port_open
    from qemuctl.errors import AgentError, WaitTimeout
    from qemuctl.guest.info import look

    if state is not State.RUNNING:
        return None
    if not agent_port_open(vm.paths):
        return ABSENT
    try:
        return asdict(await look(vm.agent))
    except WaitTimeout:
        return SILENT
    except AgentError:
        return NONSENSE


def guest_fields(guest: dict[str, Any] | str | None) -> dict[str, str]:
    """As lines for people."""
    from datetime import UTC, datetime

    from qemuctl.units import format_rounded

    if not isinstance(guest, dict):
        return {"guest": guest or ""}

    def since(at: float | None) -> str:
        if at is None:
            return ""
        return f" since {datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M}"

    def used(one: dict[str, Any]) -> str:
        if one["size_bytes"] is None or one["used_bytes"] is None:
            return ""
        used, size = map(format_rounded, (one["used_bytes"], one["size_bytes"]))
        return f", {used} of {size} used"

    system = (guest["os"], guest["kernel"], guest["architecture"])
    return {
        "guest": ", ".join(filter(None, system)) or "its agent answers",
        "hostname": guest["host_name"] or "",
        "addresses": "\n".join(
            f"{card['name']}: {', '.join(card['addresses'])}"
            for card in guest["interfaces"] or ()
            if card["addresses"] and card["name"] != "lo"
        ),
        "file systems": "\n".join(
            f"{one['mount_point']}: {one['type']}{used(one)}"
            for one in guest["file_systems"] or ()
        ),
        "users": "\n".join(
            f"{user['name']}{since(user['login_at'])}" for user in guest["users"] or ()
        ),
    }
