"""The shape of a machine that is to go on with another one's state.

QEMU finds the state of a device by where the device is. What was plugged in or out
since a machine was started is not where its spec would put it; so the places of all
devices come from the machine itself, and only what they are from the spec.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import field, replace
from typing import Any, ClassVar, Literal

from qemuctl.cmdline.blockdev import FormatNode
from qemuctl.cmdline.devices import (
    BlockDevice,
    Device,
    Nic,
    PcDimm,
    PcieRootPort,
    ScsiDevice,
    VirtioMemPci,
)
from qemuctl.cmdline.keyval import Plain
from qemuctl.cmdline.layout import root_port
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.objects import MemoryBackendRam
from qemuctl.cmdline.options import MachineOption, Smp
from qemuctl.cmdline.qapi import JsonOption
from qemuctl.spec.model import Spec
from qemuctl.structs import Struct

# Every function of every slot of a PCI bus.
_MOST_PORTS = 256


class Slot(Struct):
    """Where one device is: its ``bus``, and there its ``addr`` (PCI) or its target
    (SCSI)."""

    bus: str
    addr: str | None = None
    scsi_id: int | None = None


class Module(Struct):
    """A DIMM: ``size`` in bytes at ``addr`` of the guest's memory."""

    id: str
    memdev: str
    size: int
    addr: int
    slot: int


class Grown(Struct):
    """A virtio-mem device: ``size`` bytes at ``memaddr`` of the guest's memory, of
    which it was asked to use ``requested_size``."""

    id: str
    memdev: str
    size: int
    memaddr: int
    requested_size: int


class Shape(Struct):
    """All devices that have an id, and where they are (qom-list, qom-get).

    ``machine`` is the exact type, ``accel`` and ``cpu_model`` what its processors
    are made by and look like; ``ports`` is the number of root ports. ``cpus`` are the
    processors beside the ``first_cpus``, as `device_add` takes them; ``sata`` tells
    whether q35 has its disk controller.
    """

    machine: str
    accel: Literal["kvm", "tcg"]
    cpu_model: str | None
    slots: dict[str, Slot]
    ports: int = 0
    first_cpus: int = 1
    cpus: tuple[dict[str, Any], ...] = ()
    modules: tuple[Module, ...] = ()
    grown: Grown | None = None
    others: frozenset[str] = field(default_factory=frozenset)
    sata: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for what no machine tells of itself: a shape may come from
        a peer or a file, and any other device could be told to read a file."""
        if not 0 <= self.ports <= _MOST_PORTS:
            raise ValueError(f"not a number of root ports: {self.ports}")
        for cpu in self.cpus:
            if not _is_processor(**cpu):
                raise ValueError(f"not a processor: {cpu!r}")

    @property
    def ids(self) -> frozenset[str]:
        """Every device that is there; ``others`` are those that no bus is known of."""
        return frozenset(self.slots) | self.others


def _is_processor(driver: object = None, id: object = "", **place: object) -> bool:
    named = isinstance(driver, str) and driver.endswith("-cpu")
    return named and isinstance(id, str) and all(type(n) is int for n in place.values())


class _Processor(JsonOption):
    """A processor beside the first ones, by what `query-hotpluggable-cpus` says."""

    OPTION: ClassVar = "-device"
    properties: dict[str, Any]

    def arguments(self) -> list[str]:
        """The option and its value."""
        return [self.OPTION, json.dumps(self.properties, separators=(",", ":"))]


def exact(spec: Spec, shape: Shape) -> Spec:
    """The spec with machine and processor written out as the shape has them."""
    cpu = spec.cpu.model_copy(update={"model": shape.cpu_model})
    pinned = {"machine": shape.machine, "accel": shape.accel, "cpu": cpu}
    return spec.model_copy(update=pinned)


def shaped(content: Iterable[Element], shape: Shape) -> Iterator[Element]:
    """A machine's elements with each device where ``shape`` has it, and without
    those that it does not have; it waits for its state (``-incoming defer``)."""
    elements = list(content)
    gone = set(_back_ends(elements, shape))
    yield Plain(option="-incoming", value="defer")
    for element in elements:
        if isinstance(element, PcieRootPort):
            if element.port == 0:
                yield from (root_port(index) for index in range(shape.ports))
        elif isinstance(element, MachineOption):
            yield replace(element, sata=None if shape.sata else False)
        elif isinstance(element, Smp) and element.cpus != shape.first_cpus:
            most = element.maxcpus or element.cpus
            yield replace(element, cpus=shape.first_cpus, maxcpus=most)
        elif isinstance(element, Device):
            if element.id in shape.ids:
                yield _placed(element, shape.slots.get(element.id))
        elif _name(element) not in gone:
            yield element
    yield from _memory(shape)
    for properties in shape.cpus:
        yield _Processor(properties=properties)


def _back_ends(elements: Iterable[Element], shape: Shape) -> Iterator[str]:
    """The back ends of the devices that have gone."""
    for element in elements:
        if isinstance(element, Device) and element.id not in shape.ids:
            if isinstance(element, BlockDevice) and element.drive is not None:
                yield element.drive
                yield from (
                    node.file
                    for node in elements
                    if isinstance(node, FormatNode) and node.node_name == element.drive
                )
            elif isinstance(element, Nic):
                yield element.netdev


def _name(element: Element) -> str | None:
    """What a back end is called."""
    name = getattr(element, "node_name", None) or getattr(element, "id", None)
    return name if isinstance(element, JsonOption) else None


def _placed(device: Device, slot: Slot | None) -> Device:
    if slot is None or device.bus is None:
        return device
    if isinstance(device, ScsiDevice) and slot.scsi_id is not None:
        return replace(device, bus=slot.bus, scsi_id=slot.scsi_id)
    return device if slot.addr is None else _moved(device, slot)


def _moved(device: Device, slot: Slot) -> Device:
    return replace(device, bus=slot.bus, addr=slot.addr)


def _memory(shape: Shape) -> Iterator[Element]:
    for module in shape.modules:
        yield MemoryBackendRam(id=module.memdev, size=module.size)
        yield PcDimm(
            id=module.id, memdev=module.memdev, addr=f"{module.addr:#x}",
            slot=module.slot,
        )  # fmt: skip
    if shape.grown is not None:
        grown = shape.grown
        slot = shape.slots[grown.id]
        yield MemoryBackendRam(id=grown.memdev, size=grown.size)
        yield VirtioMemPci(
            id=grown.id, bus=slot.bus, addr=slot.addr, memdev=grown.memdev,
            requested_size=grown.requested_size, memaddr=grown.memaddr,
        )  # fmt: skip
