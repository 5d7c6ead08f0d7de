"""Where a guest's ssh server is: behind a forward, or at an address of the guest's own.

QEMU's user network leads forwards to the address that its DHCP gives, whatever the
guest's is; on a tap interface there are no forwards at all. The agent tells which
addresses the guest has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl.errors import QemuctlError
from qemuctl.guest.ssh_port import PORT, forward_of, reachable
from qemuctl.hotplug.nic_state import read_cards, read_forwards, recorded, refresh
from qemuctl.hotplug.nics.seen_by_guest import guest_nics
from qemuctl.qmp.net import Card, HostForward, hostfwd_add, hostfwd_remove
from qemuctl.thread import in_full

if TYPE_CHECKING:
    from qemuctl.guest.info import Interface
    from qemuctl.vm.vm import Vm

Addresses = list[IPv4Interface]
# Seconds for the agent to answer, and for other commands that change the VM.
_ANSWER, _PATIENCE = 1.0, 5.0
# `info network`'s types of back ends without a way from this host to the guest but
# forwards.
_NO_WAY = (None, "user", "hubport")
_NEIGHBOURS = Path("/proc/net/arp")


async def where(vm: Vm) -> tuple[str, int] | None:
    """The address and port to connect to; None where no way is known.

    A forward that leads past the guest is led to an address that it has
    (hostfwd_remove, hostfwd_add).
    """
    by_forward = forward_of(recorded(vm).forwards)
    with contextlib.suppress(QemuctlError, TimeoutError):
        cards = await read_cards(vm)
        seen = await guest_nics(vm, timeout=_ANSWER)
        if seen is None:
            return by_forward
        if by_forward is not None:
            await _lead_right(vm, cards, seen)
            return by_forward
        own = [(card, _addresses(card, seen)) for card in cards]
        for address in _direct(own, _neighbours()):
            if await reachable(address, PORT):
                return address, PORT
    return by_forward


async def may_be_reached(vm: Vm) -> bool:
    """Whether there is a forward to the ssh server, or a card on a network of this
    host's own, by which the guest may be reached once it has an address."""
    if forward_of(recorded(vm).forwards) is not None:
        return True
    with contextlib.suppress(QemuctlError):
        return any(card.type not in _NO_WAY for card in await read_cards(vm))
    return False


def _addresses(card: Card, seen: dict[str, Interface]) -> Addresses:
    """What the guest's agent tells of a card's IPv4 addresses."""
    found = []
    interface = seen.get(card.mac.lower())
    for text in interface.addresses if interface is not None else ():
        with contextlib.suppress(ValueError):
            found.append(IPv4Interface(text))
    return found


def _direct(
    cards: Iterable[tuple[Card, Addresses]], neighbours: dict[str, str]
) -> Iterator[str]:
    """The guest's addresses on networks of this host's own; not those that another
    machine of these networks has."""
    for card, addresses in cards:
        for address in addresses if card.type not in _NO_WAY else ():
            mac = card.mac.lower()
            if neighbours.get(str(address.ip), mac) == mac:
                yield str(address.ip)


def _neighbours() -> dict[str, str]:
    """The MAC addresses of what this host has talked to, by IPv4 address (proc(5))."""
    try:
        lines = [line.split() for line in _NEIGHBOURS.read_text().splitlines()[1:]]
    except OSError:
        return {}
    return {each[0]: each[3] for each in lines if int(each[2], 16)}


async def _lead_right(vm: Vm, cards: list[Card], seen: dict[str, Interface]) -> None:
    own = {card.backend: _addresses(card, seen) for card in cards}
    if not any(_aims(await read_forwards(vm), own)):
        return
    async with vm.bus.changing(patience=_PATIENCE):
        for each, address in _aims(await read_forwards(vm), own):
            await in_full(_lead(vm, each, address))
        await refresh(vm)


async def _lead(vm: Vm, forward: HostForward, address: IPv4Address) -> None:
    """Leads a forward to another address; connections through it go on."""
    await vm.execute(hostfwd_remove(forward))
    anew = replace(forward, guest_address=str(address))
    await vm.execute(hostfwd_add(forward.netdev, anew.rule))


def _aims(
    forwards: Iterable[HostForward], own: dict[str | None, Addresses]
) -> Iterator[tuple[HostForward, IPv4Address]]:
    """The forwards that lead to where the guest is not, and its address in the same
    network."""
    for each in forwards:
        target = IPv4Address(each.guest_address)
        there = [a for a in own.get(each.netdev, ()) if target in a.network]
        if there and target not in [a.ip for a in there]:
            yield each, there[0].ip
