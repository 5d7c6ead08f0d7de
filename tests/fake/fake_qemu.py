"""A QEMU of a few dictionaries: devices, block nodes, and a guest that lets go of a
device when the test says so."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fake_qmp import Peer

from qemuctl.paths import VmPaths
from qemuctl.process import Identity, take
from qemuctl.registry import vms
from qemuctl.registry.records.process_record import Record
from qemuctl.spec import Spec
from qemuctl.units import MIB

PORTS = 4


class Refused(Exception):
    """QEMU's own words for no."""


class FakeQemu:
    """``faults`` are for commands by their number, counted from the last `forget`:
    ``before`` and ``after`` cut the connection there, else they are an error's words.
    ``guest`` is how it takes device_del: ``kind``, ``refuses``, ``silent``."""

    def __init__(self, events: Path) -> None:
        self._events = events
        events.touch()
        self.devices: dict[str, dict[str, Any]] = {
            f"port{n}": {"driver": "pcie-root-port", "bus": "pcie.0"}
            for n in range(PORTS)
        }
        self.nodes: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.faults: dict[int, str] = {}
        self.refuse: dict[str, list[str]] = {}
        self.guest = "kind"
        self.leaving: set[str] = set()
        self.held: dict[str, int] = {}

    def forget(self) -> None:
        self.asked.clear()
        self.faults.clear()

    def state(self) -> Any:
        return (
            {id_: dict(device) for id_, device in self.devices.items()},
            {name: dict(node) for name, node in self.nodes.items()},
        )

    async def script(self, peer: Peer) -> None:
        await peer.greet()
        while True:
            command = await peer.read()
            name, arguments = command["execute"], command.get("arguments", {})
            number = len(self.asked)
            self.asked.append(name)
            fault = self.faults.get(number)
            if fault == "before":
                return
            try:
                if self.refuse.get(name):
                    raise Refused(self.refuse[name].pop(0))
                value = self._do(name, arguments)
            except Refused as error:
                missing = "not found" in str(error)
                class_ = "DeviceNotFound" if missing else "GenericError"
                await peer.refuse(command, class_, str(error))
                continue
            if fault == "after":
                return
            answer = {} if value is None else value
            await peer.send({"return": answer, "id": command["id"]})

    def event(self, name: str, **data: Any) -> None:
        stamp = {"seconds": 1, "microseconds": 0}
        message = {"timestamp": stamp, "event": name, "data": data}
        with self._events.open("a") as file:
            file.write(json.dumps(message) + "\n")

    def release(self, id_: str, *, times: int = 1) -> None:
        """The guest lets go of a device."""
        self.devices.pop(id_, None)
        self.leaving.discard(id_)
        path = f"/machine/peripheral/{id_}"
        self.event("DEVICE_DELETED", path=f"{path}/virtio-backend")
        for _ in range(times):
            self.event("DEVICE_DELETED", path=path, device=id_)

    def _do(self, name: str, arguments: dict[str, Any]) -> Any:
        answer: Callable[..., Any] = getattr(self, "_" + name.replace("-", "_"))
        return answer(**{k.replace("-", "_"): v for k, v in arguments.items()})

    def _query_status(self) -> Any:
        return {"status": "running", "running": True}

    def _query_chardev(self) -> Any:
        return []

    def _qom_list(self, **_: Any) -> Any:
        own = {"name": "type", "type": "string"}
        return [
            own,
            *(
                {"name": id_, "type": f"child<{device['driver']}>"}
                for id_, device in self.devices.items()
            ),
        ]

    def _qom_get(self, path: str, property: str) -> Any:
        id_ = path.rpartition("/")[2]
        if id_ not in self.devices:
            raise Refused(f"Device '{id_}' not found")
        if property == "parent_bus":
            return f"/machine/q35/{self.devices[id_]['bus']}"
        return self.devices[id_][property]

    def _query_named_block_nodes(self, **_: Any) -> Any:
        return list(self.nodes.values())

    def _query_block(self) -> Any:
        return [
            {
                "device": "", "locked": False, "io-status": "ok",
                "qdev": f"/machine/peripheral/{id_}/virtio-backend",
                "inserted": {
                    "node-name": device["drive"], "ro": False,
                    "iops": device.get("iops", 0), "bps": device.get("bps", 0),
                    "image": self.nodes[device["drive"]]["image"],
                },
            }
            for id_, device in self.devices.items()
            if "drive" in device
        ]  # fmt: skip

    def _blockdev_add(self, node_name: str, **node: Any) -> None:
        if node_name in self.nodes:
            raise Refused(f"Duplicate nodes with node-name='{node_name}'")
        file = node.get("filename") or self.nodes[node["file"]]["file"]
        self.nodes[node_name] = {
            "node-name": node_name, "file": file, "ro": False,
            "image": {"filename": file, "virtual-size": 1 << 20},
        }  # fmt: skip

    def _blockdev_del(self, node_name: str) -> None:
        if node_name not in self.nodes:
            raise Refused(f"Failed to find node with node-name='{node_name}'")
        held = self.held.get(node_name, 0)
        self.held[node_name] = held - 1
        drives = {device.get("drive") for device in self.devices.values()}
        above = f"{node_name.removesuffix('-file')}" in self.nodes
        in_use = held > 0 or node_name in drives
        if in_use or (node_name.endswith("-file") and above):
            raise Refused(f"Block device {node_name} is in use")
        del self.nodes[node_name]

    def _device_add(self, id: str, **device: Any) -> None:
        if id in self.devices:
            raise Refused(f"Duplicate device ID '{id}'")
        self.devices[id] = device

    def _device_del(self, id: str) -> None:
        if id not in self.devices:
            raise Refused(f"Device '{id}' not found")
        if id in self.leaving:
            raise Refused(f"Device {id} is already in the process of unplug")
        if self.guest == "kind":
            self.release(id, times=2)
        elif self.guest == "refuses":
            path = f"/machine/peripheral/{id}"
            self.event("DEVICE_UNPLUG_GUEST_ERROR", path=path, device=id)
        else:
            self.leaving.add(id)

    def _block_set_io_throttle(self, id: str, bps: int, iops: int, **_: int) -> None:
        self.devices[id.split("/")[3]] |= {"bps": bps, "iops": iops}

    def _block_resize(self, node_name: str, size: int) -> None:
        self.nodes[node_name]["image"]["virtual-size"] = size


@contextlib.contextmanager
def seems_on(spec: Spec, forwards: Sequence[str] = ()) -> Iterator[VmPaths]:
    """A VM that is on for the block, or so it seems: its process is this one."""
    vms.create(spec)
    paths = VmPaths.of(spec.name)
    paths.run.mkdir(parents=True, mode=0o700)
    lock = take(paths.lock)
    assert lock is not None
    me = Identity.of(os.getpid())
    assert me is not None
    Record(
        qemu=me, shepherd=me, owner=me, attached=True, run=str(paths.run), started_at=0,
        argv=[], accel="tcg", accel_reason="", version="7.2.0", machine="pc-q35-7.2",
        cpus=1, memory=512 * MIB, forwards=list(forwards),
    ).write(paths.record)  # fmt: skip
    try:
        yield paths
    finally:
        os.close(lock)
        shutil.rmtree(paths.run)
