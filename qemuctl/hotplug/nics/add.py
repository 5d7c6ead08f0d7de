"""Plugging one network card into a running VM: back end, card, cable, record, spec.

A step that fails undoes those before it.
"""

from __future__ import annotations

import asyncio
import contextlib

from qemuctl.cmdline.devices import Device
from qemuctl.cmdline.layout import Layout
from qemuctl.cmdline.netdev import Netdev
from qemuctl.cmdline.network import backend_of, card, netdev
from qemuctl.cmdline.qapi import to_qapi
from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, HostError, MonitorLost, QemuctlError, SpecError
from qemuctl.host import inspect_host
from qemuctl.hotplug.bus import Bus
from qemuctl.hotplug.nic_state import move_link, refresh
from qemuctl.hotplug.nics.forwards import host_port_problem
from qemuctl.hotplug.nics.in_spec import NewNic, plan_nic
from qemuctl.qmp.net import (
    DeviceListProperties,
    HostForward,
    client_names,
    network,
    parse_network,
)
from qemuctl.registry.edit import reconfigure
from qemuctl.registry.records.hotplug_journal import Change
from qemuctl.registry.records.plugged_specs import note_plugged
from qemuctl.registry.scope import Scope
from qemuctl.registry.socket_nics import check_far_end
from qemuctl.registry.vms import load
from qemuctl.spec import Nic
from qemuctl.structs import Struct

# Seconds that a guest gets for what is taken back.
_UNDO_PATIENCE = 5.0


class Insertion(Struct, kw_only=False):
    """A card that can be plugged in, as far as that can be known before."""

    bus: Bus
    new: NewNic
    backend: Netdev
    card: Device
    change: Change
    config: bool

    @classmethod
    async def plan(cls, bus: Bus, nic: Nic, scope: Scope) -> Insertion:
        """Finds the card's id, address and place; changes nothing.

        Raises as `Nics.add` does.
        """
        vm = bus.connection
        text = await vm.execute(network())
        check_far_end(vm.name, nic)
        new = plan_nic(
            vm.name,
            nic,
            taken=client_names(text) | (await bus.devices()).keys(),
            macs={each.mac for each in parse_network(text)},
            config=scope.config,
        )
        place = await bus.place()
        host = inspect_host(load(vm.name))
        layout = Layout("q35" if "q35" in vm.record.machine else "pc")
        front = card(new.id, new.nic, new.mac, host, layout, place)
        await _check_driver(vm, front.driver)
        written = new.nic.model_dump(exclude_defaults=True)
        change = Change(
            device=new.id,
            removal=False,
            netdev=backend_of(new.id),
            configured="nics" if scope.config else None,
            entry=written if scope.config else None,
        )
        backend = netdev(backend_of(new.id), new.nic)
        return cls(bus, new, backend, front, change, scope.config)

    @property
    def vm(self) -> Connection:
        """The connection to the VM."""
        return self.bus.connection

    async def carry_out(self) -> list[HostForward]:
        """Does it; gives the card's forwards, free ports read back."""
        async with self.bus.adding(self.change):
            try:
                return await self._steps()
            except BaseException:
                # A card that is in by now goes again.
                with contextlib.suppress(QemuctlError):
                    await asyncio.shield(self._take_back())
                raise

    async def _steps(self) -> list[HostForward]:
        known = {"id": self.new.id, "mac": self.new.mac}
        note_plugged(self.vm.paths, "nics", self.new.nic.model_copy(update=known))
        try:
            # Unanswered it counts as failed: what came of it is taken away again.
            await self.vm.command("netdev_add", to_qapi(self.backend))
        except CommandError as error:
            problem = host_port_problem(f"add {self.new.id}", error.desc)
            raise problem or error from error
        await self._plug()
        if self.new.nic.link == "down":
            await move_link(self.vm, self.new.id, up=False)
        forwards = await refresh(self.vm)
        if self.config:
            reconfigure(self.vm.name, self.new.edit)
        return [each for each in forwards if each.netdev == self.backend.id]

    async def _plug(self) -> None:
        try:
            await self.bus.plug(self.card)
        except MonitorLost:
            # Nobody heard the answer, but QEMU may have done it.
            if self.card.id not in await self.bus.devices():
                raise

    async def _take_back(self) -> None:
        if self.new.id not in await self.bus.devices():
            return  # its back end goes with the rest of the change
        back = Change(device=self.new.id, removal=True, netdev=self.change.netdev)
        await self.bus.remove(back, timeout=_UNDO_PATIENCE)


async def _check_driver(vm: Connection, driver: str) -> None:
    """Raises HostError where the QEMU that runs lacks a device, SpecError where it is
    no network card."""
    try:
        found = await vm.execute(DeviceListProperties(typename=driver))
    except CommandError as error:
        raise HostError(
            f"the QEMU that runs {vm.name} lacks the device {driver!r}: {error.desc}",
            hint="another one may be installed by now: stop the VM and start it anew",
        ) from error
    if "netdev" not in {each.name for each in found}:
        raise SpecError(
            f"not a network card: {driver}",
            key="model",
            hint="virtio, e1000, e1000e and rtl8139 are",
        )
