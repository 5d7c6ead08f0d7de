"""The disks that a snapshot of a VM is of: all that are written to.

Each must be qcow2, which holds its own snapshots. Disks that are only read, and
CDs, cannot change and are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qemuctl.connection.connection import Connection
from qemuctl.errors import ImageError, StateError
from qemuctl.hotplug.disks.throttle import device_id
from qemuctl.image.snapshots import snapshots as in_file
from qemuctl.process.usage import swapped_bytes, usage
from qemuctl.qmp.commands import BlockInfo, QueryBlock
from qemuctl.qmp.stats import QueryMemorySizeSummary
from qemuctl.registry.disks.disk_files import DiskFile, disk_files
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.vms import find, load
from qemuctl.snapshots.tree import DiskTags, Tag
from qemuctl.units import format_rounded


class Carrier(DiskTags):
    """A disk that is written to, with its file; ``node`` is QEMU's name for it while
    the VM is on. ``format`` is not qcow2 where it holds no snapshots."""

    path: Path
    format: str
    node: str = ""


async def of_running(vm: Connection) -> list[Carrier]:
    """The disks that QEMU writes to now (query-block, query-named-block-nodes)."""
    drives = await vm.execute(QueryBlock())
    written = [each for each in drives if each.inserted and not each.inserted["ro"]]
    return [await _carrier(vm, each, each.inserted or {}) for each in written]


async def _carrier(vm: Connection, drive: BlockInfo, medium: dict[str, Any]) -> Carrier:
    node, image, format_ = medium["node-name"], medium["image"], medium["drv"]
    file = _file_below(medium["file"])
    if format_ not in ("qcow2", "raw"):
        # A filter, such as a throttle of the user's own, may be on top of it.
        for each in await vm.command("query-named-block-nodes", {"flat": True}):
            if each["drv"] == "qcow2" and each["file"] == file:
                node, image, format_ = each["node-name"], each["image"], "qcow2"
    tags = {
        one["name"]: Tag(created_at=one["date-sec"], ram_bytes=one["vm-state-size"])
        for one in image.get("snapshots", ())
    }
    return Carrier(
        id=device_id(drive) or drive.device or node,
        tags=tags,
        path=Path(file),
        format=format_,
        node=node,
    )


def _file_below(name: str) -> str:
    """The file of a node; that of a filter QEMU tells in its notation for nodes."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        node = json.loads(name.removeprefix("json:"))
        while "filename" not in node:
            node = node["file"]
        return str(node["filename"])
    return name


def of_files(name: str) -> list[Carrier]:
    """The disks that the spec of a VM has, and what their files tell.

    Raises SpecError, NotFound, ImageError for an image that is lost.
    """
    spec = load(name)
    every = disk_files(spec, find(name), image_of(spec))
    return [_of_file(disk) for disk in every if not disk.readonly]


def _of_file(disk: DiskFile) -> Carrier:
    tags: dict[str, Tag] = {}
    problem = disk.problem
    if disk.format == "qcow2" and problem is None:
        try:
            tags = {
                one.name: Tag(
                    created_at=one.created.timestamp(), ram_bytes=one.vm_state_size
                )
                for one in in_file(disk.path)
            }
        except ImageError as error:
            problem = error.message
    return Carrier(
        id=disk.target, tags=tags, problem=problem, path=disk.path, format=disk.format
    )


def check_can_hold(name: str, state: str, disks: Sequence[Carrier]) -> None:
    """Raises StateError, naming the disk and what to do, unless all of them can."""
    action = f"snapshot {name}"
    for disk in disks:
        if disk.format != "qcow2":
            raise StateError(
                action, state, f"{disk.id} is {disk.format}, which holds no snapshots",
                hint=f"while the VM is off: qemuctl image convert {disk.path} "
                "FILE.qcow2, and that one in its spec; or readonly: true there",
            )  # fmt: skip
        if disk.problem is not None:
            raise StateError(
                action, state, f"{disk.id}: {disk.problem}",
                hint=f"its first start makes it: qemuctl start {name}"
                if disk.problem == "not made yet" else None,
            )  # fmt: skip
    if not disks:
        raise StateError(
            action, state, "it has no qcow2 disk that is written to",
            hint="a small one will do: qemuctl disk add "
            f"{name} --size 1G (it is there for RAM too)",
        )  # fmt: skip


async def check_room(vm: Connection, disk: Carrier) -> None:
    """Raises StateError when the RAM may not fit where a disk's file is.

    What is written until there is no room left stays taken, and the guest's next
    write would fail: so we would rather not begin.
    """
    memory = await vm.execute(QueryMemorySizeSummary())
    taken = usage(vm.record.qemu)
    needed = memory.base_memory + (memory.plugged_memory or 0)
    # What the guest has never touched is not written; but a fork's RAM is full of
    # what its template has touched.
    if taken and vm.record.template is None:
        touched = taken.resident_bytes + swapped_bytes(vm.record.qemu.pid)
        needed = min(needed, touched)
    if _free_bytes(disk) < needed:
        raise StateError(
            f"snapshot {vm.name}", "running",
            f"its RAM may take {format_rounded(needed)}, and there is only "
            f"{room(disk)} of room for {disk.path}",
            hint="make room there; --disk-only needs next to none",
        )  # fmt: skip


def room(disk: Carrier) -> str:
    """How much room there is where a disk's file is, for people."""
    return format_rounded(_free_bytes(disk))


def roomiest(disks: Iterable[Carrier]) -> Carrier:
    """The first of those disks whose file systems have the most room: for the RAM."""
    return max(disks, key=_free_bytes)


def _free_bytes(disk: Carrier) -> int:
    with contextlib.suppress(OSError):
        status = os.statvfs(disk.path.parent)
        return status.f_bavail * status.f_frsize
    return 0
