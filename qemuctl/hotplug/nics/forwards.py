"""The port forwards of one card of a running VM (`hostfwd_add`, `hostfwd_remove`)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket

from qemuctl.cmdline.network import hostfwd
from qemuctl.connection.connection import Connection
from qemuctl.errors import MonitorLost, QemuctlError, StateError
from qemuctl.hotplug.nic_state import read_forwards, refresh
from qemuctl.hotplug.nics import in_spec
from qemuctl.hotplug.nics.results import ChangedForward
from qemuctl.qmp.net import (
    Card,
    HostForward,
    forward_problem,
    hostfwd_add,
    hostfwd_remove,
)
from qemuctl.registry.edit import preview, reconfigure
from qemuctl.spec.network import Forward
from qemuctl.structs import Struct

_REFUSED = re.compile(
    r"Could not set up host forwarding rule '(tcp|udp):([0-9.]*):(\d+)-"
)


class Forwards(Struct, kw_only=False):
    """The forwards of ``card``, changed inside of `Bus.changing`."""

    vm: Connection
    card: Card

    async def add(self, forward: Forward, *, config: bool) -> ChangedForward:
        """Adds one, to the spec too with ``config``; raises as `Nics.add_forward`."""
        edit = in_spec.forward_edit(self.card.id, forward)
        if config:
            preview(self.vm.name, edit)
        before = await read_forwards(self.vm)
        try:
            added = await self._add(forward, before)
            if config:
                reconfigure(self.vm.name, edit)
        except BaseException:
            with contextlib.suppress(QemuctlError):
                await asyncio.shield(self._back_to(before))
            raise
        return ChangedForward(
            id=self.card.id,
            forward=forward.notation,
            address=added.text,
            live=True,
            configured=config,
        )

    async def _add(self, forward: Forward, before: list[HostForward]) -> HostForward:
        problem = None
        # A lost answer says nothing; what QEMU has by now tells.
        with contextlib.suppress(MonitorLost):
            command = hostfwd_add(self.card.backend or "", hostfwd(forward))
            problem = forward_problem(await self.vm.execute(command))
        action = f"forward {forward.notation}"
        if problem is not None:
            reason = f"QEMU says: {problem}"
            raise host_port_problem(action, problem) or StateError(
                action, "running", reason
            )
        now = await refresh(self.vm)
        new = [each for each in now if each not in before and self._is(each, forward)]
        if not new:
            raise StateError(action, "running", "QEMU has not taken it")
        return new[0]

    async def _back_to(self, before: list[HostForward]) -> None:
        for each in await read_forwards(self.vm):
            if each not in before and each.netdev == self.card.backend:
                await self.vm.execute(hostfwd_remove(each))
        await refresh(self.vm)

    async def remove(self, wanted: Forward, *, config: bool) -> ChangedForward:
        """Takes one away, in the spec too with ``config``; raises as
        `Nics.remove_forward`."""
        name, id_ = self.vm.name, self.card.id
        own = [
            each
            for each in await read_forwards(self.vm)
            if each.netdev == self.card.backend
        ]
        found = [each for each in own if self._is(each, wanted)]
        if len(found) > 1:
            raise in_spec.ambiguous(id_, wanted, [each.text for each in found])
        written = None
        if config:
            live = bool(found)
            written = in_spec.matching(name, id_, wanted, chosen=live)
        if not found and written is None:
            known = [each.text for each in own]
            raise in_spec.no_such_forward(id_, wanted, known)
        if written is not None:
            preview(name, in_spec.no_forward_edit(id_, written))
        for each in found:
            await self._remove(each)
        await refresh(self.vm)
        if written is not None:
            reconfigure(name, in_spec.no_forward_edit(id_, written))
        return ChangedForward(
            id=id_,
            forward=(written or wanted).notation,
            address=found[0].text if found else None,
            live=bool(found),
            configured=written is not None,
        )

    async def _remove(self, forward: HostForward) -> None:
        problem = None
        with contextlib.suppress(MonitorLost):  # what QEMU has by now tells
            problem = forward_problem(await self.vm.execute(hostfwd_remove(forward)))
        if forward in await refresh(self.vm):
            reason = f"QEMU says: {problem}" if problem else "QEMU has kept it"
            raise StateError(f"take {forward.text} away", "running", reason)

    def _is(self, each: HostForward, forward: Forward) -> bool:
        """Whether QEMU's forward is what a user means; host port 0 is any."""
        return (
            each.netdev == self.card.backend
            and each.protocol == forward.protocol
            and each.address == forward.address
            and each.guest_port == forward.guest_port
            and forward.host_port in (0, each.port)
        )


def host_port_problem(action: str, words: str) -> StateError | None:
    """The error for QEMU's words when it cannot have a host port; None for others.

    Why not, the kernel tells us as it told QEMU, if nothing has changed since.
    """
    match = _REFUSED.search(words)
    if match is None:
        return None
    kind = socket.SOCK_STREAM if match[1] == "tcp" else socket.SOCK_DGRAM
    reason = "is taken, or not allowed"
    with socket.socket(socket.AF_INET, kind) as probe:
        # As QEMU does: connections that linger on the port do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((match[2], int(match[3])))
            if match[1] == "tcp":
                probe.listen(1)
        except OSError as error:
            reason = (error.strerror or reason).lower()
    where = f"{match[1]} port {match[3]} of {match[2] or 'the host'}"
    hint = "choose another host port, or :PORT for a free one"
    return StateError(action, "running", f"{where}: {reason}", hint=hint)
