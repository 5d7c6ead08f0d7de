"""`disk`: the disks of a VM. `disk ls` is here, changes are in `disk_changes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuctl.cli import disk_changes
from qemuctl.cli.declare import group
from qemuctl.cli.output import print_json, print_table
from qemuctl.cli.parameters import Json, Name
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.hotplug.disks.results import LiveDisk
    from qemuctl.registry.disks.disk_files import DiskFile

disk = group("disk", "The disks of a VM: list, add, remove, resize, limit.")


@disk.command("ls", example="qemuctl disk ls web --json")
def list_disks(name: Name, json: Json = False) -> None:
    """List a VM's disks: size, room taken on the host, and the files below.

    A disk's target is the id of its device and, unless the spec gives another
    one, its serial in the guest (/dev/disk/by-id). NOW tells of a VM that is on
    which ones it has. Files that removed disks have left come last.
    """
    from qemuctl.process import held
    from qemuctl.registry.disks.disk_files import disk_files
    from qemuctl.registry.disks.resolve import image_of
    from qemuctl.registry.leftover_disks import left_files
    from qemuctl.registry.vms import find, load

    paths, spec = find(name), load(name)
    live = run_async(_live(name))
    found = disk_files(spec, paths, image_of(spec))
    left = []
    if live is not None or not held(paths.lock):
        left = left_files(name, [one.path for one in live or ()])
    if json:
        print_json(_facts(found, live) + [_left_facts(path) for path in left])
        return
    rows = [_row(disk, live) for disk in found]
    written = {disk.target for disk in found}
    rows += [_live_row(one) for one in live or () if one.id not in written]
    for path in left:
        format_, note = path.suffix.removeprefix("."), f"{path} (of a removed disk)"
        rows.append((None, None, None, _used(path), format_, None, "no", note))
    if spec.cdrom is not None:
        iso = spec.cdrom or "(empty)"
        rows.append(("cdrom", None, None, None, "raw", "ro", None, iso))
    head = ("TARGET", "SERIAL", "SIZE", "USED", "FORMAT", "MODE", "NOW", "FILE")
    print_table(head, rows)


async def _live(name: str) -> list[LiveDisk] | None:
    """The disks that the VM has now; None when it is off, or does not say."""
    from qemuctl.errors import QmpError, StateError, WaitTimeout
    from qemuctl.process import held
    from qemuctl.registry.vms import find
    from qemuctl.vm.attach import attach

    if not held(find(name).lock):
        return None
    try:
        async with await attach(name) as vm:
            return await vm.disks.list()
    except (QmpError, StateError, WaitTimeout):
        return None


def _facts(found: list[DiskFile], live: list[LiveDisk] | None) -> list[dict[str, Any]]:
    now = {one.id: one for one in live or ()}
    written = [
        {
            **asdict(d), "size": d.size, "used": d.used, "configured": True,
            "live": asdict(now[d.target]) if d.target in now else None,
        }
        for d in found
    ]  # fmt: skip
    names = {d.target for d in found}
    return written + [
        {
            "target": one.id, "serial": one.serial, "path": one.path,
            "size": one.size_bytes, "used": one.used_bytes,
            "readonly": one.readonly, "configured": False, "live": asdict(one),
        }
        for one in live or ()
        if one.id not in names
    ]  # fmt: skip


def _left_facts(path: Path) -> dict[str, Any]:
    return {
        "target": None, "serial": None, "path": path, "size": None,
        "used": path.stat().st_blocks * 512, "readonly": False, "configured": False,
        "live": None,
    }  # fmt: skip


def _used(path: Path) -> str:
    from qemuctl.units import format_rounded

    return format_rounded(path.stat().st_blocks * 512)


def _row(disk: DiskFile, live: list[LiveDisk] | None) -> tuple[str | None, ...]:
    from qemuctl.units import format_rounded, format_size

    now = next((one for one in live or () if one.id == disk.target), None)
    return (
        disk.target,
        disk.serial,
        format_size(disk.size) if disk.size is not None else None,
        format_rounded(disk.used) if disk.used is not None else None,
        disk.format,
        "ro" if disk.readonly else "rw",
        None if live is None else _now(now),
        _chain(disk),
    )


def _live_row(one: LiveDisk) -> tuple[str | None, ...]:
    from qemuctl.units import format_rounded, format_size

    mode = "ro" if one.readonly else "rw"
    size = format_size(one.size_bytes)
    used = None if one.used_bytes is None else format_rounded(one.used_bytes)
    return (one.id, one.serial, size, used, None, mode, _now(one), str(one.path))


def _now(one: LiveDisk | None) -> str:
    if one is None:
        return "no"
    if one.leaving:
        return "leaving"
    return "yes" if one.io_status == "ok" else one.io_status


def _chain(file: DiskFile) -> str:
    if file.problem:
        return f"{file.path} ({file.problem})"
    return " → ".join(str(layer.remote or layer.path) for layer in file.chain)


_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "add": (disk_changes.add, "add web --size 10G --target vdb"),
    "rm": (disk_changes.remove, "rm web vdb"),
    "resize": (disk_changes.resize, "resize web vdb +1G"),
    "set": (disk_changes.limit, "set web vdb --iops 500 --bps 20M"),
}
for _name, (_function, _example) in _COMMANDS.items():
    disk.command(_name, example=f"qemuctl disk {_example}")(_function)
