"""Where a VM that runs is not what its spec says: what a restart would change.

What QEMU tells is asked of QEMU: processors, memory, disks, cards, forwards. For
all else the spec at the start stands for the VM; for what was plugged in since,
the spec as it is now does, for it was written at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuctl.errors import ImageError
from qemuctl.hotplug.disks.results import LiveDisk
from qemuctl.hotplug.nic_state import read_cards, read_forwards, recorded
from qemuctl.hotplug.nics.listing import merged
from qemuctl.image.chain import chain
from qemuctl.paths import VmPaths
from qemuctl.process import runs
from qemuctl.qmp.commands import QueryCpusFast
from qemuctl.qmp.net import Card, HostForward
from qemuctl.registry.disks.resolve import base_of, image_of
from qemuctl.registry.edit import cards_of, offset, pinned
from qemuctl.registry.records.started_spec import started_spec
from qemuctl.registry.vms import find, load
from qemuctl.spec import Disk, Forward, Nic, Spec, resolve_paths
from qemuctl.structs import Struct
from qemuctl.units import format_size
from qemuctl.vm.attach import attach

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

Differences = dict[str, tuple[str, str]]

_ABSENT, _PRESENT = "none", "present"
_BUSES = {
    "virtio-blk-pci": ("virtio",),
    "virtio-blk-device": ("virtio",),
    "scsi-hd": ("scsi",),
    "ide-hd": ("sata", "ide"),
}
_VIRTIO_CARDS = ("virtio-net-pci", "virtio-net-device")
_TYPES = {"stream": "socket"}
# Of a disk or card, what QEMU tells; the rest of its fields are compared as written.
_TOLD_OF_DISKS = {"id", "path", "size", "bus", "readonly", "serial", "iops", "bps"}
_TOLD_OF_CARDS = {"id", "mac", "link", "forward"}


async def differences(name: str) -> Differences:
    """What is now and what is configured, by the field of the spec.

    Empty for a VM that is off. Raises SpecError, ImageError, StateError while it
    starts, and as `Vm.execute` does: then nobody knows.
    """
    if not runs(find(name).lock):
        return {}
    async with await attach(name) as vm:
        return await differences_from(vm, load(name))


async def differences_from(vm: Vm, configured: Spec) -> Differences:
    """As `differences`, of a VM that runs, from a spec."""
    started = started_spec(vm.paths)
    amounts, disks, cards = await asyncio.gather(
        _amounts(vm, started),
        _Disks.of(vm, started, configured),
        _cards(vm, started, configured),
    )
    now, parts = _flat(started) | amounts, disks.found() | cards
    fields = _pairs(now, _flat(configured))
    if disks.root is not None:
        fields.pop("root.size", None)
        fields |= _pairs(*disks.root)
    return fields | parts


async def _amounts(vm: Vm, started: Spec) -> dict[str, str]:
    """Processors and memory as they are, where they are not as they were."""
    found = {}
    cpus, memory = await asyncio.gather(vm.execute(QueryCpusFast()), vm.memory.now())
    if len(cpus) != vm.record.cpus:
        found["cpu.count"] = str(len(cpus))
    # Before its driver is up a guest has all that it will have.
    if memory.actual_bytes != vm.record.memory:
        found["memory.size"] = format_size(memory.actual_bytes)
    elif vm.record.memory != started.memory.size:  # what the image needs
        found["memory.size"] = str(_flat(started)["memory.size"])
    return found


# -- disks -----------------------------------------------------------------------


class _Disks(Struct, kw_only=False):
    """Disks by their ids: as QEMU has them, as they were written at the start, and
    as they are written now; ``fresh`` are those that were plugged in since.

    ``root`` has the size of the image's own disk, now and at the next start, in
    the spec's field for it; None where that disk, or its size, is not there.
    """

    live: Mapping[str, LiveDisk]
    started: Mapping[str, Disk]
    configured: Mapping[str, Disk]
    fresh: set[str]
    root: tuple[dict[str, str], dict[str, str]] | None
    paths: VmPaths

    @classmethod
    async def of(cls, vm: Vm, started: Spec, configured: Spec) -> _Disks:
        live = {disk.id: disk for disk in await vm.disks.list()}
        root = _root_size(vm.paths, configured)
        own = live.get("disk0") if offset(started, vm.paths) else None
        return cls(
            live=live,
            started=_disks(started, vm.paths),
            configured=_disks(configured, vm.paths),
            fresh=await _fresh(vm, live),
            root=_root_pair(own.size_bytes, root) if own and root else None,
            paths=vm.paths,
        )

    def found(self) -> Differences:
        # What is of neither is the seed, or of `extra_args`: there again.
        there = {id_ for id_ in self.live if id_ in {*self.started, *self.fresh}}
        found: Differences = {}
        for id_ in sorted(there & self.configured.keys()):
            found |= {f"disks.{id_}.{k}": v for k, v in self._fields(id_).items()}
        return found | _comings("disks", there, self.configured)

    def _fields(self, id_: str) -> Differences:
        live, wanted = self.live[id_], self.configured[id_]
        before = wanted if id_ in self.fresh else self.started.get(id_, wanted)
        was = _leaves(before, skip=_TOLD_OF_DISKS)
        will = _leaves(wanted, skip=_TOLD_OF_DISKS)
        buses = _BUSES.get(live.driver, ())
        was["bus"] = wanted.bus if wanted.bus in buses else buses[0]
        was["readonly"] = _text(live.readonly)
        was |= _rates(live.iops, live.bytes_per_second)
        if live.serial:
            was["serial"] = live.serial
            will["serial"] = wanted.serial or id_
        will["bus"], will["readonly"] = wanted.bus, _text(wanted.readonly)
        will |= _rates(wanted.iops, wanted.bps)
        if wanted.size is not None:
            was["size"] = format_size(live.size_bytes)
            will["size"] = format_size(wanted.size)
        path = wanted.path or self.paths.disk_file(id_, wanted.driver)
        if not _same_file(live.path, Path(path)):
            was["path"], will["path"] = str(live.path), str(path)
        return _pairs(was, will)


def _disks(spec: Spec, paths: VmPaths) -> dict[str, Disk]:
    """All disks of a spec, the image's included."""
    own = Disk(path=str(paths.disk(0, "qcow2")), format="qcow2")
    found = {f"disk{n}": own for n in range(offset(spec, paths))}
    whole = resolve_paths(pinned(spec, paths), paths.state)
    return found | {str(disk.id): disk for disk in whole.disks}


def _root_size(paths: VmPaths, spec: Spec) -> int | None:
    """The size that the image's own disk has by the spec; None without one."""
    there = resolve_paths(spec, paths.state)
    base = base_of(there, image_of(there))
    if base is None or spec.root.size is not None:
        return None if base is None else spec.root.size
    try:
        return chain(base.path, base.format)[0].virtual_size
    except ImageError:  # it has gone since, which is for the next start to say
        return None


def _root_pair(now: int, wanted: int) -> tuple[dict[str, str], dict[str, str]]:
    return {"root.size": format_size(now)}, {"root.size": format_size(wanted)}


def _rates(iops: int | None, bps: int | None) -> dict[str, str]:
    rates = {"iops": iops and str(iops), "bps": bps and format_size(bps)}
    return {key: value for key, value in rates.items() if value}


def _same_file(one: Path, other: Path) -> bool:
    if one == other or str(one).startswith("json:"):  # QEMU's own notation
        return True
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False


# -- cards -----------------------------------------------------------------------


async def _cards(vm: Vm, started: Spec, configured: Spec) -> Differences:
    cards, forwards = await asyncio.gather(read_cards(vm), read_forwards(vm))
    live = {card.id: card for card in cards}
    old, new = _nics(started, vm.paths), _nics(configured, vm.paths)
    down = set(recorded(vm).links_down)
    # The address that a card came with: that of `info network`, its guest may have
    # changed.
    fresh, macs = await asyncio.gather(_fresh(vm, live), vm.bus.properties(live, "mac"))
    there = {id_ for id_ in live if id_ in {*old, *fresh}}
    found: Differences = {}
    for id_ in sorted(there & new.keys()):
        card, wanted = live[id_], new[id_]
        before = wanted if id_ in fresh else old.get(id_, wanted)
        was = _leaves(before, skip=_TOLD_OF_CARDS)
        will = _leaves(wanted, skip=_TOLD_OF_CARDS)
        if id_ in fresh:
            was |= _kind(card, wanted)
        was["link"], will["link"] = "down" if id_ in down else "up", wanted.link
        was["mac"] = str(macs.get(id_, before.mac))
        will["mac"] = str(wanted.mac)
        own = [each for each in forwards if each.netdev == card.backend]
        pairs = _pairs(was, will) | _forwards(own, wanted.forward)
        found |= {f"nics.{id_}.{key}": pair for key, pair in pairs.items()}
    return found | _comings("nics", there, new)


def _nics(spec: Spec, paths: VmPaths) -> dict[str, Nic]:
    cards = cards_of(spec, paths)
    return {id_: nic for id_, nic in cards.items() if nic.type != "none"}


def _kind(card: Card, wanted: Nic) -> dict[str, str]:
    """Model and type of a card that was plugged in, in the words of a spec."""
    found = {}
    virtio = wanted.model == "virtio" and card.model in _VIRTIO_CARDS
    if card.model and card.model != wanted.model and not virtio:
        found["model"] = card.model
    if card.type is not None:
        found["type"] = _TYPES.get(card.type, card.type)
    return found


def _forwards(live: list[HostForward], wanted: Iterable[Forward]) -> Differences:
    both = list(merged(live, wanted))
    now = [each.text for each in both if each.live and not each.configured]
    configured = [each.text for each in both if each.configured and not each.live]
    if not now and not configured:
        return {}
    return {"forward": (", ".join(now) or _ABSENT, ", ".join(configured) or _ABSENT)}


# -- both ------------------------------------------------------------------------


async def _fresh(vm: Vm, ids: Iterable[str]) -> set[str]:
    """Those devices that were plugged in while the VM ran."""
    plugged = await vm.bus.properties(ids, "hotplugged")
    return {id_ for id_, value in plugged.items() if value}


def _comings(part: str, there: set[str], wanted: Iterable[str]) -> Differences:
    """What a restart takes away, and what it brings."""
    gone = {f"{part}.{id_}": (_PRESENT, _ABSENT) for id_ in sorted(there - {*wanted})}
    new = [id_ for id_ in wanted if id_ not in there]
    return gone | {f"{part}.{id_}": (_ABSENT, _PRESENT) for id_ in new}


def _pairs(now: Mapping[str, str], configured: Mapping[str, str]) -> Differences:
    """The fields that are not the same."""
    pairs = {
        key: (now.get(key, _ABSENT), configured.get(key, _ABSENT))
        for key in {**now, **configured}
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(spec: Spec) -> dict[str, str]:
    """All fields of a spec but its disks and cards, with dots in their names."""
    return _leaves(spec, skip=("disks", "nics", "name"))


def _leaves(model: Any, skip: Iterable[str] = ()) -> dict[str, str]:
    return dict(_walk("", model.model_dump(exclude=set(skip))))


def _walk(key: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(f"{key}.{name}" if key else name, inner)
    elif value is not None and value != []:
        yield key, _text(value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
