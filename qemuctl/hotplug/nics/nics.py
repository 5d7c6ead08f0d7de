"""``vm.nics``: network cards in and out of a running VM, their cables and forwards.

Each change is planned against the spec first, made in QEMU, and only then
written into the spec. What a failed or killed command leaves, the journal
knows (see `bus`).
"""

from __future__ import annotations

import asyncio
import contextlib

from qemuctl.connection.connection import Connection
from qemuctl.errors import (
    CommandError,
    HotplugError,
    QemuctlError,
    SpecError,
    StateError,
)
from qemuctl.hotplug.bus import Bus
from qemuctl.hotplug.nic_state import move_link, read_cards, recorded
from qemuctl.hotplug.nics import in_spec
from qemuctl.hotplug.nics.add import Insertion
from qemuctl.hotplug.nics.forwards import Forwards
from qemuctl.hotplug.nics.listing import listed
from qemuctl.hotplug.nics.results import (
    AddedNic,
    ChangedForward,
    Link,
    LinkedNic,
    NicStatus,
    RemovedNic,
)
from qemuctl.hotplug.nics.seen_by_guest import sight
from qemuctl.hotplug.unplug import Removal
from qemuctl.qmp.net import Card
from qemuctl.registry.edit import preview, reconfigure
from qemuctl.registry.records.hotplug_journal import Change
from qemuctl.registry.scope import Scope
from qemuctl.spec import Nic
from qemuctl.spec.network import Forward

# Seconds that a guest gets to let go of a card.
REMOVE_TIMEOUT = 20.0


class Nics:
    """The network cards of one VM."""

    def __init__(self, vm: Connection, bus: Bus) -> None:
        self._vm = vm
        self._bus = bus

    async def list(self) -> list[NicStatus]:
        """The cards that the VM has now, that its spec has, or both (`info network`,
        `info usernet`, and the guest's agent if it answers). Raises QmpError."""
        return await listed(self._bus)

    async def add(self, nic: Nic, *, scope: Scope = Scope.BOTH) -> AddedNic:
        """Plugs a card in (netdev_add, device_add); ``nic`` is one of a spec.

        Without id and address it gets free ones. A failure leaves nothing behind.
        Raises as `in_spec.plan_nic`, StateError for a VM that does not run or
        has no room, or a host port that is taken, and CommandError.
        """
        if not scope.live:
            return in_spec.add(self._vm.name, nic)
        async with self._bus.changing():
            insertion = await Insertion.plan(self._bus, nic, scope)
            forwards = await insertion.carry_out()
        new = insertion.new
        return AddedNic(
            id=new.id,
            mac=new.mac,
            model=new.nic.model,
            forwards=tuple(forward.text for forward in forwards),
            live=True,
            configured=scope.config,
            guest=await sight(self._vm, new.mac),
        )

    async def remove(
        self,
        id: str,
        *,
        scope: Scope = Scope.BOTH,
        timeout: float = REMOVE_TIMEOUT,
    ) -> RemovedNic:
        """Asks the guest to let go of a card, in ``timeout`` seconds (device_del);
        its back end and forwards go after it (netdev_del).

        Raises HotplugError with the outcome ``refused`` or ``pending``: then a
        later command does the rest; and StateError, SpecError before anything is
        asked.
        """
        name = self._vm.name
        if not scope.live:
            return in_spec.remove(name, id)
        pending = self._pending(id)
        async with self._bus.changing():
            ended = pending and not self._pending(id)
            if pending and ended and not await self._bus.there(id):
                # The guest has let go of it since, and all else is done.
                return _removed(pending)
            plan = await self._removal(id, scope)
            if plan is None:
                return in_spec.remove(name, id)
            await self._unplug(plan, timeout)
        return _removed(plan)

    async def link(
        self, id: str, link: Link, *, scope: Scope = Scope.BOTH
    ) -> LinkedNic:
        """Plugs a card's cable in or out (set_link).

        Raises StateError and SpecError for a card that is not there.
        """
        name = self._vm.name
        if not scope.live:
            return in_spec.link(name, id, link)
        async with self._bus.changing():
            if await self._only_written(id, scope):
                return in_spec.link(name, id, link)
            await self._known(id)
            edit = in_spec.link_edit(id, link)
            config = scope.config and in_spec.has(name, id)
            if config:
                preview(name, edit)
            before = id not in recorded(self._vm).links_down
            try:
                await move_link(self._vm, id, up=link == "up")
                if config:
                    reconfigure(name, edit)
            except BaseException:
                with contextlib.suppress(QemuctlError):
                    await asyncio.shield(move_link(self._vm, id, up=before))
                raise
        return LinkedNic(id=id, link=link, live=True, configured=config)

    async def add_forward(
        self, forward: Forward, *, id: str | None = None, scope: Scope = Scope.BOTH
    ) -> ChangedForward:
        """Leads a port of the host to one of the guest (hostfwd_add), by the card
        ``id`` or the first one of type user; host port 0 is chosen by the kernel.

        Raises SpecError for a card that has no forwards, StateError for a host port
        that cannot be had.
        """
        name = self._vm.name
        if not scope.live:
            return in_spec.add_forward(name, forward, id)
        async with self._bus.changing():
            if id is not None and await self._only_written(id, scope):
                return in_spec.add_forward(name, forward, id)
            card = await self._user_card(id)
            config = scope.config and in_spec.has(name, card.id)
            return await Forwards(self._vm, card).add(forward, config=config)

    async def remove_forward(
        self, forward: Forward, *, id: str | None = None, scope: Scope = Scope.BOTH
    ) -> ChangedForward:
        """Takes a forward away (hostfwd_remove); host port 0 means any, if there is
        but one. Connections through it go on.

        Raises SpecError for one that is not there.
        """
        name = self._vm.name
        if not scope.live:
            return in_spec.remove_forward(name, forward, id)
        async with self._bus.changing():
            if id is not None and await self._only_written(id, scope):
                return in_spec.remove_forward(name, forward, id)
            card = await self._user_card(id)
            config = scope.config and in_spec.has(name, card.id)
            return await Forwards(self._vm, card).remove(forward, config=config)

    # -- parts -------------------------------------------------------------

    def _pending(self, id: str) -> Change | None:
        changes = self._bus.journal.changes()
        return next((c for c in changes if c.removal and c.device == id), None)

    async def _unplug(self, plan: Change, timeout: float) -> None:
        """Returns when the card has gone; raises HotplugError when it has not."""
        name, card = self._vm.name, plan.device
        try:
            outcome = await self._bus.remove(plan, timeout=timeout)
        except CommandError as error:
            raise HotplugError(
                f"QEMU does not let go of {card}: {error.desc}", "refused",
                hint=f"from the next start on: qemuctl nic rm {name} {card} --config",
            ) from error  # fmt: skip
        if outcome is Removal.REFUSED:
            raise HotplugError(f"the guest refuses to let go of {card}", "refused")
        # Gone, perhaps, but QEMU itself still has its back end.
        if outcome is Removal.PENDING or self._pending(card):
            raise HotplugError(
                f"the guest has not let go of {card} in {timeout:g} s",
                "pending",
                hint="it may still do so, and a later command does the rest: "
                f"qemuctl nic rm {name} {card}",
            )

    async def _only_written(self, id: str, scope: Scope) -> bool:
        """Whether the spec has a card that the running VM has not, and it is meant."""
        if not scope.config or not in_spec.has(self._vm.name, id):
            return False
        return id not in {card.id for card in await read_cards(self._vm)}

    async def _known(self, id: str) -> Card:
        cards = {card.id: card for card in await read_cards(self._vm)}
        if id not in cards:
            there = ", ".join(cards) or "none"
            raise StateError(
                f"change {id}", "running", f"{self._vm.name} has no such card now",
                hint=f"there are: {there}",
            )  # fmt: skip
        return cards[id]

    async def _user_card(self, id: str | None) -> Card:
        if id is None:
            cards = await read_cards(self._vm)
            found = next((card for card in cards if card.type == "user"), None)
            if found is None:
                raise in_spec.no_user_card(self._vm.name)
            return found
        card = await self._known(id)
        if card.type != "user":
            raise in_spec.not_user(id, card.type)
        return card

    async def _removal(self, id: str, scope: Scope) -> Change | None:
        """What removing comes to, checked; None for a card that the spec alone has."""
        name = self._vm.name
        if await self._only_written(id, scope):
            return None
        card = await self._known(id)
        if id not in await self._bus.devices():
            raise StateError(f"unplug {id}", "running", "it has no id in QEMU")
        config = scope.config and in_spec.has(name, id)
        if config:
            try:
                preview(name, in_spec.removal_of(name, id))
            except SpecError as error:
                error.hint = (
                    error.hint or f"only now: qemuctl nic rm {name} {id} --live"
                )
                raise
        return Change(
            device=id,
            removal=True,
            netdev=card.backend,
            configured="nics" if config else None,
        )


def _removed(change: Change) -> RemovedNic:
    configured = change.configured is not None
    return RemovedNic(id=change.device, live=True, configured=configured)
