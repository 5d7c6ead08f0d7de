"""Random changes of one guest: at the end the model, QEMU, the spec and the guest
agree."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import qemuctl
from qemuctl import Vm
from qemuctl.errors import StateError, UsageError
from qemuctl.hotplug.disks.seen_by_guest import guest_disks
from qemuctl.registry.scope import Scope
from qemuctl.spec import Disk, Nic
from qemuctl.units import MIB
from tests.guest.conftest import Home

pytestmark = pytest.mark.timeout(400)

SEED, CHANGES = 20240229, 60
IDS = 5
OURS = re.compile("[dn][0-9]s?")
SCOPES = (Scope.BOTH, Scope.BOTH, Scope.LIVE, Scope.CONFIG)


@dataclass
class Kind:
    """Devices of one kind: what is there by our own count, and how to change it."""

    add: Callable[[Vm, str, Scope], Awaitable[Any]]
    remove: Callable[[Vm, str, Scope], Awaitable[Any]]
    part: str
    live: dict[str, str] = field(default_factory=dict)
    configured: set[str] = field(default_factory=set)

    def ports(self) -> int:
        """How many ports these take; all SCSI disks are behind one."""
        return len([bus for bus in self.live.values() if bus != "scsi"])


async def _add_disk(vm: Vm, id: str, scope: Scope) -> Any:
    bus = "scsi" if id.endswith("s") else "virtio"
    return await vm.disks.add(Disk(id=id, size=MIB, bus=bus), scope=scope)


async def _remove_disk(vm: Vm, id: str, scope: Scope) -> Any:
    # A file that the spec, or the VM, still needs stays.
    with contextlib.suppress(UsageError):
        return await vm.disks.remove(id, scope=scope, delete=True)
    return await vm.disks.remove(id, scope=scope)


async def _add_nic(vm: Vm, id: str, scope: Scope) -> Any:
    return await vm.nics.add(Nic(id=id), scope=scope)


async def _remove_nic(vm: Vm, id: str, scope: Scope) -> Any:
    return await vm.nics.remove(id, scope=scope)


def _ids(value: Any) -> Iterator[str]:
    """All that query-pci names, behind whatever bridges."""
    if isinstance(value, dict):
        yield value.get("qdev_id", "")
        value = list(value.values())
    for each in value if isinstance(value, list) else []:
        yield from _ids(each)


def kinds() -> dict[str, Kind]:
    """By the first letter of their ids."""
    return {
        "d": Kind(_add_disk, _remove_disk, "disks"),
        "n": Kind(_add_nic, _remove_nic, "nics"),
    }


class Model:
    """What should be there."""

    def __init__(self, vm: Vm, room: int) -> None:
        self.vm, self.room, self.controller = vm, room, False
        self.kinds = kinds()

    def free(self) -> int:
        used = sum(kind.ports() for kind in self.kinds.values())
        return self.room - used - self.controller

    async def add(self, kind: Kind, id: str, scope: Scope) -> bool:
        bus = "scsi" if id.endswith("s") else "virtio"
        needs = scope.live and not (bus == "scsi" and self.controller)
        free = id not in kind.configured
        if scope.live or kind.part == "disks":  # whose file is there
            free = free and id not in kind.live
        if not free or (needs and not self.free()):
            with pytest.raises(StateError):
                await kind.add(self.vm, id, scope)
            return False
        done = await kind.add(self.vm, id, scope)
        assert (done.live, done.configured) == (scope.live, scope.config)
        if scope.live:
            assert done.guest.answer == "seen", done
            kind.live[id] = bus
            self.controller = self.controller or bus == "scsi"
        if scope.config:
            kind.configured.add(id)
        return True

    async def remove(self, kind: Kind, id: str, scope: Scope) -> bool:
        live = scope.live and id in kind.live
        config = scope.config and id in kind.configured
        if not live and not config:
            with pytest.raises(qemuctl.QemuctlError):
                await kind.remove(self.vm, id, scope)
            return False
        await kind.remove(self.vm, id, scope)
        if live:
            del kind.live[id]
        if config:
            kind.configured.discard(id)
        if id not in kind.live and id not in kind.configured:
            for left in self.vm.paths.disks.glob(f"{id}.*"):
                left.unlink()
        return True

    async def agrees(self) -> None:
        """Compares with QEMU (blocks, objects, ports), the spec, and the guest."""
        vm, disks, nics = self.vm, self.kinds["d"], self.kinds["n"]
        ours = disks.live.keys() | nics.live.keys()
        devices = await vm.bus.devices()
        assert {each for each in devices if OURS.fullmatch(each)} == ours
        assert {disk.id for disk in await vm.disks.list()} == {"disk0", *disks.live}
        named = await vm.command("query-named-block-nodes", {"flat": True})
        expected = {part for each in disks.live for part in (each, f"{each}-file")}
        assert {node["node-name"] for node in named} == {
            "disk0", "disk0-file", *expected,
        }  # fmt: skip
        on_pci = set(_ids(await vm.command("query-pci")))
        assert {each for each in on_pci if OURS.fullmatch(each)} == {
            id_ for kind in (disks, nics) for id_, bus in kind.live.items()
            if bus != "scsi"
        }  # fmt: skip
        assert len(await vm.bus.free()) == self.free()
        assert ("scsi0" in devices) == self.controller
        assert vm.bus.journal.changes() == []
        spec = qemuctl.load_spec(vm.paths.spec)
        written = {disk.id for disk in spec.disks if disk.id and disk.id != "disk0"}
        assert written == disks.configured
        cards = {nic.id for nic in spec.nics if nic.id and nic.id != "nic0"}
        assert cards == nics.configured
        seen = await guest_disks(vm)
        assert seen is not None
        assert {disk.serial for disk in seen} == {"data", *disks.live}
        result = await vm.agent.run(["sh", "-c", "ls -d /sys/class/net/eth* | wc -l"])
        assert int(result.text) == 1 + len(nics.live)


async def change(vm: Vm, chance: random.Random, changes: int) -> None:
    """Makes that many changes and takes all back; compares now and then."""
    model = Model(vm, len(await vm.bus.free()))
    done = before = 0
    while done < changes:
        letter = chance.choice("ddn")
        kind, scope = model.kinds[letter], chance.choice(SCOPES)
        suffix = chance.choice(["", "s"]) if letter == "d" else ""
        each = f"{letter}{chance.randrange(IDS)}{suffix}"
        change = model.add if chance.random() < 0.55 else model.remove
        done += await change(kind, each, scope)
        if done % 30 == 0 and done != before:
            before = done
            await model.agrees()
    for kind in model.kinds.values():
        for each in {*kind.live, *kind.configured}:
            await model.remove(kind, each, Scope.BOTH)
    await model.agrees()


async def test_after_random_changes_all_agree(
    shared: Home, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    async with await qemuctl.attach(web) as vm:
        await change(vm, random.Random(SEED), CHANGES)
