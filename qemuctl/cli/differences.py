"""Where a VM that runs is not what its spec says: what a restart would change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemuctl.paths import VmPaths
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm

Differences = dict[str, tuple[str, str]]

_DISKS = {"virtio-blk-pci", "virtio-blk-device", "scsi-hd", "ide-hd"}
_CARDS = {"virtio-net-pci", "virtio-net-device", "e1000", "e1000e", "rtl8139"}
_ABSENT = "none"


async def differences(name: str) -> Differences:
    """What is now and what is configured, by the field of the spec.

    None for a VM that is off. Raises SpecError, StateError and as `Vm.execute` does.
    """
    from qemuctl.process import held
    from qemuctl.vm.attach import attach
    from qemuctl.vm.definitions import find, load
    from qemuctl.vm.started import started_spec

    paths = find(name)
    if not held(paths.lock) or paths.busy.exists():
        return {}
    configured, started = load(name), started_spec(paths)
    now = _flat(started)
    async with await attach(name) as vm:
        now |= await _amounts(vm, started)
        parts = await _parts(vm, paths, started, configured)
    wanted = _flat(configured)
    keys = [*now, *(key for key in wanted if key not in now)]
    fields = {
        key: (now.get(key, _ABSENT), wanted.get(key, _ABSENT))
        for key in keys
        if now.get(key, _ABSENT) != wanted.get(key, _ABSENT)
    }
    return fields | parts


async def shown_differences(
    paths: VmPaths, *, timeout: float = 1.0
) -> dict[str, dict[str, str]] | None:
    """The same for `info`: None where there are none, or nobody tells in time."""
    from qemuctl.errors import QemuctlError

    try:
        async with asyncio.timeout(timeout):
            found = await differences(paths.name)
    except (QemuctlError, TimeoutError, OSError):
        return None
    return {key: {"now": a, "configured": b} for key, (a, b) in found.items()} or None


async def _amounts(vm: Vm, started: Spec) -> dict[str, str]:
    """Processors and memory as they are, where they are not as they were."""
    from qemuctl.qmp.commands import QueryCpusFast
    from qemuctl.units import format_size

    found = {}
    cpus = await vm.execute(QueryCpusFast())
    if len(cpus) != vm.record.cpus:
        found["cpu.count"] = str(len(cpus))
    memory = await vm.memory.now()
    # Before its driver is up a guest has all that it will have.
    if memory.actual_bytes != vm.record.memory:
        found["memory.size"] = format_size(memory.actual_bytes)
    elif vm.record.memory != started.memory.size:  # what the image needs
        found["memory.size"] = str(_flat(started)["memory.size"])
    return found


async def _parts(
    vm: Vm, paths: VmPaths, started: Spec, configured: Spec
) -> Differences:
    """Disks and cards by their ids: those that come and go, and changed fields."""
    from qemuctl.vm.configured import ids, pinned

    devices = await vm.live.devices()
    there = {id_ for id_, driver in devices.items() if driver in _DISKS | _CARDS}
    # A model of card that is not well known is believed to be there.
    there |= ids(started, paths) & devices.keys()
    there.discard("cidata")
    wanted = ids(configured, paths)
    old, new = pinned(started, paths), pinned(configured, paths)
    found: Differences = {}
    for part in ("disks", "nics"):
        before = {str(item.id): item for item in getattr(old, part)}
        after = {str(item.id): item for item in getattr(new, part)}
        for id_ in [key for key in before if key in after and key in there]:
            was, will = _leaves(before[id_]), _leaves(after[id_])
            for key in {**was, **will}:
                if was.get(key) != will.get(key):
                    pair = (was.get(key, _ABSENT), will.get(key, _ABSENT))
                    found[f"{part}.{id_}.{key}"] = pair
    found |= {_named(id_, devices): ("present", _ABSENT) for id_ in there - wanted}
    added = {id_: _kind(id_, new) for id_ in wanted - there}
    return found | {
        f"{kind}.{id_}": (_ABSENT, "present") for id_, kind in added.items()
    }


def _named(id_: str, devices: dict[str, str]) -> str:
    return f"{'nics' if devices[id_] in _CARDS else 'disks'}.{id_}"


def _kind(id_: str, spec: Spec) -> str:
    return "nics" if id_ in {nic.id for nic in spec.nics} else "disks"


def _flat(spec: Spec) -> dict[str, str]:
    """All fields of a spec but its disks and cards, with dots in their names."""
    return _leaves(spec, skip=("disks", "nics", "name"))


def _leaves(model: Any, skip: Iterable[str] = ()) -> dict[str, str]:
    return dict(_walk("", model.model_dump(mode="json", exclude=set(skip))))


def _walk(key: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(f"{key}.{name}" if key else name, inner)
    elif value is not None and value != []:
        yield key, str(value).lower() if isinstance(value, bool) else str(value)
