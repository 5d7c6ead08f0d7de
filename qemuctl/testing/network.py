"""A guest's network as a test wants it: ports of the host that lead in, and cables."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qemuctl.errors import AgentRefused
from qemuctl.hotplug.nic_state import read_cards, read_forwards
from qemuctl.registry.scope import Scope
from qemuctl.spec.network import Forward
from qemuctl.testing.watch import until_carrier

if TYPE_CHECKING:
    from qemuctl.hotplug.nics.results import Link
    from qemuctl.vm.vm import Vm

_HERE = ("127.0.0.1", "0.0.0.0")  # noqa: S104


async def host_port(vm: Vm, port: int) -> int:
    """The port of 127.0.0.1 that leads to a TCP port of the guest: the one that
    there is (`info usernet`), or else a free one, chosen by the kernel (hostfwd_add).

    Raises as `Nics.add_forward` does. Two at once may make two.
    """
    for each in await read_forwards(vm):
        mine = each.protocol == "tcp" and each.address in _HERE
        if mine and each.guest_port == port:
            return each.port
    wanted = Forward(guest_port=port)
    added = await vm.nics.add_forward(wanted, scope=Scope.LIVE)
    where = (added.address or "").partition("->")[0]
    return int(where.rpartition(":")[2])


async def move_cables(vm: Vm, link: Link, *, timeout: float) -> None:
    """Plugs the cables of all cards in or out (set_link), and waits until the guest
    sees it, where it lets itself be asked.

    Raises WaitTimeout when it does not see it, as `Nics.link` does, and
    UnexpectedExit.
    """
    cards = await read_cards(vm)
    for card in cards:
        await vm.nics.link(card.id, link, scope=Scope.LIVE)
    macs = [card.mac.lower() for card in cards]
    with contextlib.suppress(AgentRefused):
        await until_carrier(vm, macs, up=link == "up", timeout=timeout)
