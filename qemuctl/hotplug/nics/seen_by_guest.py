"""Whether a guest has an interface for a card, as its agent tells."""

from __future__ import annotations

import asyncio

from qemuctl.connection.connection import Connection
from qemuctl.errors import AgentError, QmpError, WaitTimeout
from qemuctl.guest.info import Interface, interfaces
from qemuctl.hotplug.sight import Sight
from qemuctl.qmp.commands import QueryChardev

# Seconds for a guest to find a card, and between two looks: there is no event.
PATIENCE = 5.0
_LOOK_EVERY = 0.2
# Seconds for a guest to get its addresses; one that asks for none takes them all.
LEASES = 10.0


async def guest_nics(vm: Connection, *, timeout: float) -> dict[str, Interface] | None:
    """The guest's interfaces by their addresses, in lower case
    (guest-network-get-interfaces); None when it does not say."""
    try:
        ports = await vm.execute(QueryChardev())
        if not any(port.label == "agent" and port.frontend_open for port in ports):
            return None
        found = await interfaces(vm.agent, timeout)
    except (AgentError, QmpError, WaitTimeout):
        return None
    return {each.mac.lower(): each for each in found if each.mac}


async def sight(vm: Connection, mac: str, *, timeout: float = PATIENCE) -> Sight:
    """Whether the guest has the card of this address, or comes to have it in
    ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        found = await guest_nics(vm, timeout=max(end - loop.time(), 0))
        if found is None:
            return Sight("no agent")
        if mac in found:
            return Sight("seen", found[mac].name)
        if loop.time() + _LOOK_EVERY > end:
            return Sight("not seen")
        await asyncio.sleep(_LOOK_EVERY)


async def wait_for_leases(
    vm: Connection, macs: tuple[str, ...], *, timeout: float = LEASES
) -> None:
    """Waits until the guest has an IP address on each card of ``macs``, at most
    ``timeout`` seconds; not at all for one whose agent does not tell."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while (left := end - loop.time()) > 0:
        found = await guest_nics(vm, timeout=left)
        if found is None or all(
            mac in found and _has_lease(found[mac]) for mac in macs
        ):
            return
        await asyncio.sleep(min(_LOOK_EVERY, left))


def _has_lease(card: Interface) -> bool:
    return any("." in address for address in card.addresses)
