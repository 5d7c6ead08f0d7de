"""The network cards of a VM: as they are now, as its spec has them, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qemuctl.guest.info import BUDGET, Interface
from qemuctl.hotplug.bus import Bus
from qemuctl.hotplug.nic_state import read_cards, read_forwards, recorded
from qemuctl.hotplug.nics.results import NicForward, NicStatus
from qemuctl.hotplug.nics.seen_by_guest import guest_nics
from qemuctl.qmp.net import Card, HostForward
from qemuctl.registry.edit import cards_of
from qemuctl.registry.vms import find, load
from qemuctl.spec import Nic
from qemuctl.spec.network import Forward


def written(name: str, *, live: bool | None = False) -> list[NicStatus]:
    """The cards that the spec has; ``live`` None where the VM is on and mute."""
    return [
        NicStatus(
            id=id_,
            type=nic.type,
            model=nic.model,
            mac=nic.mac or "",
            link=nic.link,
            live=live,
            configured=True,
            configured_link=nic.link,
            forwards=tuple(merged((), nic.forward)),
        )
        for id_, nic in cards_of(load(name), find(name)).items()
    ]


async def listed(bus: Bus) -> list[NicStatus]:
    """The cards that a VM has now, that its spec has, or both. Raises QmpError."""
    vm = bus.connection
    spec = cards_of(load(vm.name), find(vm.name))
    cards, forwards = await read_cards(vm), await read_forwards(vm)
    inside = await guest_nics(vm, timeout=BUDGET) or {}
    leaving = {c.device for c in bus.journal.changes() if c.removal}
    down = set(recorded(vm).links_down)
    rows = []
    for card in cards:
        nic = spec.pop(card.id, None)
        own = [each for each in forwards if each.netdev == card.backend]
        rows.append(
            _now(
                card, nic, own,
                down=card.id in down,
                leaving=card.id in leaving,
                guest=inside.get(card.mac.lower()),
            )
        )  # fmt: skip
    return rows + [row for row in written(vm.name) if row.id in spec]


def _now(
    card: Card,
    nic: Nic | None,
    forwards: list[HostForward],
    *,
    down: bool,
    leaving: bool,
    guest: Interface | None,
) -> NicStatus:
    return NicStatus(
        id=card.id,
        type=card.type or "none",
        model=card.model,
        mac=card.mac,
        link="down" if down else "up",
        live=True,
        configured=nic is not None,
        configured_link=nic.link if nic else None,
        leaving=leaving,
        forwards=tuple(merged(forwards, nic.forward if nic else ())),
        guest=guest,
    )


def merged(
    live: Iterable[HostForward], configured: Iterable[Forward]
) -> Iterator[NicForward]:
    """Forwards of both kinds; a free port of the spec is one of those that QEMU has."""
    left = sorted(configured, key=lambda each: each.host_port == 0)
    for each in live:
        match = next((one for one in left if _same(each, one)), None)
        if match is not None:
            left.remove(match)
        yield NicForward(text=each.text, live=True, configured=match is not None)
    for one in left:
        yield NicForward(text=one.notation, live=False, configured=True)


def _same(live: HostForward, configured: Forward) -> bool:
    return (
        live.protocol == configured.protocol
        and live.address == configured.address
        and live.guest_port == configured.guest_port
        and configured.host_port in (0, live.port)
    )
