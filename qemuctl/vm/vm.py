"""`Vm`: one virtual machine with a process, and what can be done with it.

It joins the connection to a VM with its facets, each a room of its own (`power`,
`hotplug`, `snapshots`, …) and here an attribute.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from qemuctl import vm as facets
from qemuctl.connection.connection import Connection
from qemuctl.paths import VmPaths
from qemuctl.qmp import Session
from qemuctl.registry.records.process_record import Record

if TYPE_CHECKING:  # what few commands need is loaded when it is used
    from qemuctl.vm import (
        Bus,
        Cdrom,
        Cpus,
        Disks,
        Files,
        Inside,
        Keyboard,
        Memory,
        Nics,
        Power,
        Screen,
        Snapshots,
        Stats,
    )


class Vm(Connection):
    """One VM that has a process: the connection to it, and its facets.

    ``kept``, set on a throwaway VM, lets it outlive its block and its owner.
    """

    def __init__(
        self, paths: VmPaths, record: Record, session: Session | None = None
    ) -> None:
        super().__init__(paths, record, session)
        self.kept = False

    @cached_property
    def power(self) -> Power:
        """Pause, resume, reset, reboot, stop and kill."""
        return facets.Power(self)

    @cached_property
    def files(self) -> Files:
        """Files into the guest and out of it."""
        return facets.Files(self)

    @cached_property
    def cdrom(self) -> Cdrom:
        """The medium in its drive."""
        return facets.Cdrom(self)

    @cached_property
    def bus(self) -> Bus:
        """What is plugged into it, and whose turn it is to change that."""
        return facets.Bus(self)

    @cached_property
    def disks(self) -> Disks:
        """The disks that it has now, and changing them."""
        return facets.Disks(self, self.bus)

    @cached_property
    def nics(self) -> Nics:
        """Its network cards, and changing them."""
        return facets.Nics(self, self.bus)

    @cached_property
    def stats(self) -> Stats:
        """What the VM takes and does, in numbers."""
        return facets.Stats(self)

    @cached_property
    def inside(self) -> Inside:
        """What the guest tells about itself."""
        return facets.Inside(self.agent)

    @cached_property
    def screen(self) -> Screen:
        """What the guest shows, and who may look."""
        return facets.Screen(self)

    @cached_property
    def memory(self) -> Memory:
        """How much memory the guest has."""
        return facets.Memory(self, lambda: self.bus)

    @cached_property
    def cpus(self) -> Cpus:
        """How many processors the guest has."""
        return facets.Cpus(self, self.bus)

    @cached_property
    def snapshots(self) -> Snapshots:
        """States of the whole VM that it can go back to."""
        return facets.Snapshots(self, self.bus, lambda: self.power)

    @cached_property
    def keyboard(self) -> Keyboard:
        """Keys for the guest, and text."""
        return facets.Keyboard(self)
