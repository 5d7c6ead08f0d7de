"""What is plugged into a running VM, as QEMU has it; one command changes it at a time.

QEMU's object tree is the truth: the devices below ``/machine/peripheral`` and
the bus that each of them is on. `query-pci` shows nothing behind a root port
before firmware has run, and QEMU takes a second device into a port that is full,
which no guest will ever see.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import replace
from typing import Any

from qemuctl.cmdline.devices import Device
from qemuctl.cmdline.layout import Place, free_places
from qemuctl.cmdline.qapi import to_qapi
from qemuctl.connection.connection import Connection
from qemuctl.errors import (
    CommandError,
    MonitorLost,
    NotFound,
    QemuctlError,
    StateError,
    WaitTimeout,
)
from qemuctl.hotplug.nic_state import refresh
from qemuctl.hotplug.unplug import Removal, unplug
from qemuctl.image.claim import claimed
from qemuctl.qmp.commands import BlockdevDel
from qemuctl.qmp.plug import NetdevDel, ObjectDel, QomGet, QomList
from qemuctl.registry.hotplug_recovery import conclude
from qemuctl.registry.records.hotplug_journal import Change, Journal
from qemuctl.registry.records.migration_journal import check_here
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import Action, require
from qemuctl.structs import Struct

PERIPHERAL = "/machine/peripheral"
# Seconds that another command's change may take before we give up.
_PATIENCE = 60.0
_ROOT_PORT = "pcie-root-port"
# A device that has gone may hold its back end for a moment more: how often, and
# how many seconds apart, they are taken away again.
_CLEARING = 5
_LETS_GO = 0.1


class Plugged(Struct, kw_only=False):
    """A device with an id, its driver, and the bus that it is on."""

    id: str
    driver: str
    bus: str


class Bus:
    """``vm.bus``: what the facets that plug things stand on."""

    def __init__(self, vm: Connection) -> None:
        self.connection = vm
        self.journal = Journal(vm.paths.journal)

    @contextlib.asynccontextmanager
    async def changing(
        self, action: Action = Action.CHANGE, *, patience: float = _PATIENCE
    ) -> AsyncIterator[None]:
        """The block is the only one that plugs anything in or out of this VM, or has
        to do with its snapshots, and what others have left undone is done before.

        Raises StateError when the VM's state does not admit ``action``, WaitTimeout
        when another command does not come to an end in ``patience`` seconds.
        """
        require(action, await self.connection.state(), self.connection.name)
        check_here(self.connection.paths, action)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(patience):
                    await stack.enter_async_context(
                        claimed(self.connection.paths.changing)
                    )
            except FileNotFoundError as error:  # it was removed, or has moved away
                raise NotFound(self.connection.name) from error
            except TimeoutError as error:
                stage = f"another command that changes {self.connection.name}"
                raise WaitTimeout(stage, patience) from error
            # It may have been paused meanwhile, or be another run by now.
            require(action, await self.connection.state(), self.connection.name)
            record = Record.read(self.connection.paths.record)
            if record is None or record.qemu != self.connection.record.qemu:
                raise StateError(
                    f"{action} {self.connection.name}", "running",
                    "it was started anew meanwhile",
                )  # fmt: skip
            await self.settle()
            yield

    # -- looking -----------------------------------------------------------

    async def devices(self) -> dict[str, str]:
        """The drivers of all devices with an id, by the id (qom-list)."""
        children = await self.connection.execute(QomList(path=PERIPHERAL))
        return {
            child.name: child.type.removeprefix("child<").removesuffix(">")
            for child in children
            if child.type.startswith("child<")
        }

    async def there(self, device: str) -> bool:
        """Whether a device is there, by its id or its path in the object tree."""
        if not device.startswith("/"):
            return device in await self.devices()
        try:
            await self.connection.execute(QomList(path=device))
        except CommandError:
            return False
        return True

    async def plugged(self, drivers: Collection[str] = ()) -> list[Plugged]:
        """All devices with an id and the buses that they are on, or only those of some
        drivers."""
        devices = [
            (id_, driver)
            for id_, driver in (await self.devices()).items()
            if not drivers or driver in drivers
        ]
        buses = await self.properties([id_ for id_, _ in devices], "parent_bus")
        return [
            Plugged(id_, driver, str(buses[id_]).rpartition("/")[2])
            for id_, driver in devices
            if id_ in buses
        ]

    async def properties(self, ids: Iterable[str], name: str) -> dict[str, Any]:
        """A property of some devices, by their ids (qom-get); one that has none, or
        went in this moment, is left out."""
        asked = list(ids)
        replies = await self.connection.execute_each(
            QomGet(path=f"{PERIPHERAL}/{id_}", property=name) for id_ in asked
        )
        return {
            id_: reply
            for id_, reply in zip(asked, replies, strict=True)
            if not isinstance(reply, CommandError)
        }

    async def free(self) -> list[Place]:
        """Where a PCI device can be plugged in now; none on a machine without."""
        plugged = await self.plugged()
        ports = [each.id for each in plugged if each.driver == _ROOT_PORT]
        on_pci = [each.id for each in plugged if each.bus == "pci.0"]
        slots = {str(slot) for slot in (await self.properties(on_pci, "addr")).values()}
        return free_places(
            self.connection.record.machine,
            sorted(ports, key=lambda port: (len(port), port)),
            {each.bus for each in plugged},
            slots,
        )

    async def place(self) -> Place:
        """The first free place. Raises StateError when there is none."""
        free = await self.free()
        if free:
            return free[0]
        name, machine = self.connection.name, self.connection.record.machine
        if "q35" in machine:
            hint = "more room comes with the next start, with hotplug_ports: 8 in the "
            hint += f"spec: qemuctl edit {name}"
        elif "i440fx" in machine:
            hint = f"remove something, or use machine: q35: qemuctl edit {name}"
        else:
            hint = f"machine: q35 has room: qemuctl edit {name}"
        raise StateError(
            f"plug anything into {name}", "running", "no port is free", hint=hint
        )

    # -- changing ----------------------------------------------------------

    @contextlib.asynccontextmanager
    async def adding(self, change: Change) -> AsyncIterator[None]:
        """The block makes what ``change`` says and then the device; when it fails,
        or is cut off, nothing of that stays."""
        self.journal.begin(change)
        try:
            yield
        except BaseException:
            # Without QEMU nothing of it is left but a file, which settle knows.
            with contextlib.suppress(QemuctlError):
                await asyncio.shield(self.settle())
            raise
        self.journal.end(change.device)

    async def plug(self, device: Device) -> None:
        """Plugs a device in (device_add). Raises CommandError."""
        await self.connection.command("device_add", to_qapi(device))

    async def remove(self, change: Change, *, timeout: float) -> Removal:
        """Asks the guest to let go of a device, and takes away its back ends once
        it has (device_del, DEVICE_DELETED).

        What is still pending after ``timeout`` seconds is done by the next
        command. Inside of `changing` only.
        """
        self.journal.begin(change)
        try:
            removal = await unplug(
                self.connection, change.device, self.there, timeout=timeout
            )
        except CommandError:
            self.journal.end(change.device)  # QEMU itself does not even ask
            raise
        except BaseException as error:
            if not isinstance(error, MonitorLost):
                # The guest may still let go of it, but who has called it off loses
                # neither a file nor a line of the spec afterwards.
                kept = replace(change, delete=False, configured=None)
                self.journal.begin(kept)
            raise
        if removal is Removal.REFUSED:
            self.journal.end(change.device)
        else:
            await self.settle()
        return removal

    async def settle(self) -> list[Change]:
        """Ends what was begun, as far as the guest and QEMU let it; gives what is
        still pending."""
        pending = self.journal.changes()
        if not pending:
            return []
        for change in pending:
            there = await self.there(change.device)
            if there and change.removal:
                continue
            if there or await self._cleared(change):
                if change.netdev is not None:
                    await refresh(self.connection)  # its forwards came or went with it
                conclude(self.connection.paths, change, there=there)
        return [change for change in self.journal.changes() if change.removal]

    async def _cleared(self, change: Change) -> bool:
        """Takes away the back ends of a device that is not there; tells whether
        they have gone."""
        for left in range(_CLEARING, -1, -1):
            if await self._clear(change):
                return True
            if left:  # no event tells when the last part lets go of them
                await asyncio.sleep(_LETS_GO)
        return False

    async def _clear(self, change: Change) -> bool:
        commands = (
            *(BlockdevDel(node_name=node) for node in change.nodes),
            *([NetdevDel(id=change.netdev)] if change.netdev else []),
            *(ObjectDel(id=id_) for id_ in change.objects),
        )
        gone = True
        for command in commands:
            try:
                await self.connection.execute(command)
            except CommandError as error:  # else it is gone, or never came
                gone = gone and "in use" not in error.desc
        return gone
