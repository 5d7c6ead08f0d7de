"""What a running VM's cards are like now: asked of QEMU, and written down for others.

The record has the forwards, for whoever wants to reach the guest, and the cables
that are out, for QEMU does not tell.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from qemuctl.connection.connection import Connection
from qemuctl.errors import MonitorLost
from qemuctl.qmp.commands import Command, R
from qemuctl.qmp.net import (
    Card,
    HostForward,
    SetLink,
    network,
    parse_network,
    parse_usernet,
    usernet,
)
from qemuctl.registry.records.process_record import Record

if TYPE_CHECKING:
    from qemuctl.spec import Spec


class Monitor(Protocol):
    """A `Connection` or a `Session`."""

    def execute(self, command: Command[R], /) -> Coroutine[Any, Any, R]: ...


async def surely(monitor: Monitor, command: Command[R]) -> R:
    """Sends a command that does no more when it is sent twice: again, once, when the
    connection ends before its answer. Raises as `Session.command` does."""
    try:
        return await monitor.execute(command)
    except MonitorLost:
        return await monitor.execute(command)


async def read_forwards(monitor: Monitor) -> list[HostForward]:
    """Port forwards as they are: QEMU took the free ports (`info usernet`)."""
    return parse_usernet(await surely(monitor, usernet()))


async def read_cards(monitor: Monitor) -> list[Card]:
    """The cards that QEMU has, and their back ends (`info network`)."""
    return parse_network(await surely(monitor, network()))


def links_down(spec: Spec) -> list[str]:
    """The ids of the cards whose cables are out from the start."""
    from qemuctl.spec.network import nic_ids

    pairs = zip(nic_ids(spec.nics), spec.nics, strict=True)
    return [id_ for id_, nic in pairs if nic.link == "down" and nic.type != "none"]


async def cut_links(monitor: Monitor, spec: Spec) -> None:
    """Before the guest runs: pulls the cables that the spec wants out (set_link)."""
    for id_ in links_down(spec):
        await monitor.execute(SetLink(name=id_, up=False))


def recorded(vm: Connection) -> Record:
    """The record as it is by now: another command may have written it."""
    return Record.read(vm.paths.record) or vm.record


async def move_link(vm: Connection, id_: str, *, up: bool) -> None:
    """Plugs a card's cable in or out (set_link), and writes that down. Inside of
    `Bus.changing` only."""
    await surely(vm, SetLink(name=id_, up=up))
    await refresh(vm, **{"up" if up else "down": (id_,)})


async def refresh(
    vm: Connection, *, up: Iterable[str] = (), down: Iterable[str] = ()
) -> list[HostForward]:
    """Writes the record anew with the forwards as they are, and the cables of some
    cards as they were put; gives the forwards.

    Inside of `Bus.changing` only, for two writers would lose each other's.
    """
    forwards = await read_forwards(vm)
    record = recorded(vm)
    there = {card.id for card in await read_cards(vm)} - {*up, *down}
    out = [id_ for id_ in record.links_down if id_ in there]
    fresh = replace(
        record,
        forwards=[forward.text for forward in forwards],
        links_down=[*out, *down],
    )
    if fresh != record:
        fresh.write(vm.paths.record)
    vm.record = fresh
    return forwards
