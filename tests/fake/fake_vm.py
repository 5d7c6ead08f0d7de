"""A `Vm` of which nothing is real: QEMU is a dictionary of answers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fake_qmp import Peer, serving

from qemuctl.paths import VmPaths
from qemuctl.process import Identity, take
from qemuctl.registry.records.process_record import Record
from qemuctl.vm.vm import Vm

MIB = 1024 * 1024
Answer = Callable[[dict[str, Any]], Any]


class Refused(Exception):
    """QEMU's own error, in its words."""


class Dropped(Exception):
    """The monitor goes away without an answer."""


class FakeQemu:
    """Answers commands from a table, and writes events as QEMU does."""

    def __init__(self, paths: VmPaths) -> None:
        self.paths = paths
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.devices: dict[str, str] = {"balloon": "virtio-balloon-pci"}
        self.stats_total = 256 * MIB
        self.available = 200 * MIB
        self.has_driver = True
        self.balloon = 256 * MIB
        self.answers: dict[str, Answer] = {
            "query-status": lambda _: {"status": "running", "running": True},
            "qom-list": lambda _: [
                {"name": id_, "type": f"child<{driver}>"}
                for id_, driver in self.devices.items()
            ],
            "qom-get": self._property,
            "query-memory-size-summary": lambda _: {"base-memory": 256 * MIB},
            "query-memory-devices": lambda _: [],
            "query-balloon": lambda _: {"actual": self.balloon},
        }

    def _property(self, arguments: dict[str, Any]) -> Any:
        if arguments["property"] == "guest-stats":
            stats = {
                "stat-total-memory": self.stats_total,
                "stat-available-memory": self.available,
            }
            return {"last-update": int(time.time()) * self.has_driver, "stats": stats}
        if arguments["property"] == "guest-stats-polling-interval":
            return 5
        return "/machine/unattached"

    def names(self) -> list[str]:
        return [name for name, _ in self.sent]

    def event(self, name: str, **data: Any) -> None:
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
        with self.paths.events.open("a") as file:
            message = {"timestamp": stamp, "event": name, "data": data}
            file.write(json.dumps(message) + "\n")

    def ost(self, device: str, source: int, status: int) -> None:
        info = {"device": device, "source": source, "status": status,
                "slot": "0", "slot-type": "DIMM"}  # fmt: skip
        self.event("ACPI_DEVICE_OST", info=info)

    async def script(self, peer: Peer) -> None:
        await peer.greet()
        while True:
            command = await peer.read()
            arguments = command.get("arguments", {})
            self.sent.append((command["execute"], arguments))
            answer = self.answers.get(command["execute"], lambda _: {})
            try:
                value = answer(arguments)
            except Refused as error:
                await peer.refuse(command, "GenericError", str(error))
            except Dropped:
                return
            else:
                await peer.send({"return": value, "id": command["id"]})


@contextlib.asynccontextmanager
async def fake_vm(spec: str) -> AsyncIterator[tuple[Vm, FakeQemu]]:
    """A VM that runs, started with ``spec``, and its QEMU."""
    folder = Path(tempfile.mkdtemp(prefix="q"))  # a short path, for a socket
    paths = VmPaths(state=folder / "fake", run=folder / "run")
    lock = None
    try:
        paths.state.mkdir()
        paths.run.mkdir()
        paths.spec.write_text(spec)
        paths.started.write_text(spec)
        paths.events.write_text("")
        lock = take(paths.lock)
        assert lock is not None
        me = Identity.of(os.getpid())
        record = Record(
            qemu=me, shepherd=me, owner=me, attached=True, run=str(paths.run),
            started_at=time.time(), argv=[], accel="tcg", accel_reason="", version="",
            machine="pc-q35-7.2", cpus=1, memory=256 * MIB,
        )  # fmt: skip
        record.write(paths.record)
        qemu = FakeQemu(paths)
        async with serving(paths.tools_socket, qemu.script):
            async with Vm(paths, record) as vm:
                yield vm, qemu
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder)
