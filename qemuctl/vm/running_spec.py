"""What another QEMU must be like to go on with the state of one that runs.

The spec says what its devices are, with those that were plugged in since the start;
QEMU's object tree says which of them are there, and where.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from qemuctl.cmdline.network import backend_of
from qemuctl.cmdline.shape import Grown, Module, Shape, Slot
from qemuctl.cmdline.storage import CDROM
from qemuctl.errors import CommandError
from qemuctl.hotplug.bus import PERIPHERAL, Plugged
from qemuctl.hotplug.nic_state import read_forwards
from qemuctl.qmp.commands import QueryBlock, QueryCpusFast
from qemuctl.qmp.cpus import QueryHotpluggableCpus
from qemuctl.qmp.memory import QueryMemoryDevices
from qemuctl.qmp.net import HostForward
from qemuctl.qmp.plug import QomGet
from qemuctl.registry.edit import cards_of, pinned
from qemuctl.registry.records.plugged_specs import plugged_disks, plugged_nics
from qemuctl.registry.records.started_spec import started_spec
from qemuctl.spec import Disk, Forward, Nic, Spec, resolve_paths
from qemuctl.structs import Struct

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

T = TypeVar("T", bound=Disk | Nic)

_ROOT_PORT = "pcie-root-port"


class Likeness(Struct):
    """A running machine, as far as another one can be made like it.

    ``spec`` has absolute paths, an id for each disk and card, and an address for each
    card; ``shape`` the places of all devices.
    """

    spec: Spec
    shape: Shape


async def likeness(vm: Vm) -> Likeness:
    """What the VM is like now (qom-list, qom-get, query-hotpluggable-cpus,
    query-memory-devices, query-block, info usernet). Inside of `Bus.changing` only.

    Raises SpecError, and as `Vm.execute` does.
    """
    plugged = await vm.bus.plugged()
    spec = await _spec(vm, {device.id for device in plugged})
    return Likeness(spec=spec, shape=await _shape(vm, plugged))


# -- the spec ----------------------------------------------------------------------


async def _spec(vm: Vm, there: set[str]) -> Spec:
    spec = resolve_paths(started_spec(vm.paths), vm.paths.state)
    spec = pinned(spec, vm.paths)
    disks = _merged(spec.disks, plugged_disks(vm.paths), there)
    rates = {d.id: (d.iops, d.bytes_per_second) for d in await vm.disks.list()}
    limited = [
        disk.model_copy(update=dict(zip(("iops", "bps"), rates[disk.id], strict=True)))
        if disk.id in rates
        else disk
        for disk in disks
    ]
    processors = await vm.execute(QueryCpusFast())
    cpus = len(processors)
    update: dict[str, Any] = {
        "disks": tuple(limited),
        "nics": tuple(await _nics(vm, spec, there)),
        "cpu": spec.cpu.model_copy(update={"count": cpus, "max": _most(spec, cpus)}),
    }
    if spec.cdrom is not None:
        update["cdrom"] = await _medium(vm)
    return spec.model_copy(update=update)


def _most(spec: Spec, cpus: int) -> int | None:
    most = spec.cpu.max or spec.cpu.count
    return most if most != cpus or spec.cpu.max is not None else None


async def _nics(vm: Vm, spec: Spec, there: set[str]) -> list[Nic]:
    # One without a card has no device.
    there = there | {str(nic.id) for nic in spec.nics if nic.type == "none"}
    nics = _merged(spec.nics, plugged_nics(vm.paths), there)
    first = cards_of(started_spec(vm.paths), vm.paths)
    forwards = await read_forwards(vm)
    return [
        nic.model_copy(
            update={
                "forward": _forwards(nic, first.get(str(nic.id), nic), forwards),
                "link": "down" if nic.id in vm.record.links_down else "up",
            }
        )
        for nic in nics
    ]


def _merged(first: Iterable[T], later: Iterable[T], there: set[str]) -> list[T]:
    """Those of the start and those that came later, as far as they are there."""
    came = {str(each.id): each for each in later}
    kept = [each for each in first if each.id not in came]
    return [each for each in (*kept, *came.values()) if each.id in there]


def _forwards(nic: Nic, first: Nic, live: list[HostForward]) -> tuple[Forward, ...]:
    """A card's forwards as they are; one on a port that the kernel chose is again
    on any."""
    free = [each for each in first.forward if each.host_port == 0]
    found = []
    for each in live:
        if each.netdev != backend_of(nic.id or ""):
            continue
        forward = Forward(
            protocol=cast(Literal["tcp", "udp"], each.protocol),
            address=each.address,
            host_port=each.port,
            guest_port=each.guest_port,
        )
        any_port = forward.model_copy(update={"host_port": 0})
        found.append(any_port if any_port in free else forward)
    return tuple(found)


async def _medium(vm: Vm) -> str:
    """The CD in the drive; empty where there is none."""
    for drive in await vm.execute(QueryBlock()):
        if drive.qdev is not None and drive.qdev.rpartition("/")[2] == CDROM:
            return str(drive.inserted["image"]["filename"]) if drive.inserted else ""
    return ""


# -- the shape ---------------------------------------------------------------------


async def _shape(vm: Vm, plugged: list[Plugged]) -> Shape:
    slots = {}
    for device in plugged:
        if device.bus and (slot := await _slot(vm, device)) is not None:
            slots[device.id] = slot
    modules, grown = await _memory(vm)
    return Shape(
        machine=vm.record.machine,
        accel="kvm" if vm.record.accel == "kvm" else "tcg",
        cpu_model=vm.record.option("-cpu"),
        slots=slots,
        ports=sum(device.driver == _ROOT_PORT for device in plugged),
        first_cpus=_first_cpus(vm.record.option("-smp")),
        cpus=await _cpus(vm),
        modules=modules,
        grown=grown,
        others=frozenset({device.id for device in plugged} - slots.keys()),
        sata=vm.record.sata,
    )


async def _slot(vm: Vm, device: Plugged) -> Slot | None:
    path = f"{PERIPHERAL}/{device.id}"
    if device.bus.startswith("scsi"):
        target = await vm.execute(QomGet(path=path, property="scsi-id"))
        return Slot(bus=device.bus, scsi_id=int(target))
    if not device.bus.startswith(("pci", "port")):
        return None
    with contextlib.suppress(CommandError):
        devfn = int(await vm.execute(QomGet(path=path, property="addr")))
        return Slot(bus=device.bus, addr=f"{devfn >> 3:#x}.{devfn & 7:#x}")
    return None


def _first_cpus(smp: str | None) -> int:
    """How many processors QEMU began with: disks have a queue for each of these, also
    those that came later."""
    found = re.match(r"(?:cpus=)?(\d+)", smp or "")
    return int(found[1]) if found else 1


async def _cpus(vm: Vm) -> tuple[dict[str, Any], ...]:
    """The processors that came later."""
    try:
        places = await vm.execute(QueryHotpluggableCpus())
    except CommandError:
        return ()
    found = []
    for place in places:
        if place.qom_path is None or not place.qom_path.startswith(PERIPHERAL):
            continue
        named = place.qom_path.startswith(f"{PERIPHERAL}/")
        id_ = {"id": place.qom_path.rpartition("/")[2]} if named else {}
        found.append({"driver": place.type, **id_, **place.props})
    return tuple(reversed(found))  # the list is from the top


async def _memory(vm: Vm) -> tuple[tuple[Module, ...], Grown | None]:
    modules, grown = [], None
    for device in await vm.execute(QueryMemoryDevices()):
        data = device.data or {}
        memdev = str(data.get("memdev", "")).rpartition("/")[2]
        if device.type == "dimm":
            module = Module(
                id=data["id"], memdev=memdev, size=data["size"],
                addr=data["addr"], slot=data["slot"],
            )  # fmt: skip
            modules.append(module)
        elif device.type == "virtio-mem":
            grown = Grown(
                id=data["id"], memdev=memdev, size=data["max-size"],
                memaddr=data["memaddr"], requested_size=data["requested-size"],
            )  # fmt: skip
    return tuple(modules), grown
