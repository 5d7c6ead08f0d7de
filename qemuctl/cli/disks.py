"""`disk ls`: the disks of a VM."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from qemuctl.cli.app import Json, Name, group
from qemuctl.cli.output import print_json, print_table

if TYPE_CHECKING:
    from qemuctl.vm.disks import DiskFile

disk = group("disk", "The disks of a VM.")


@disk.command("ls", epilog="Example:  qemuctl disk ls web --json")
def list_disks(name: Name, json: Json = False) -> None:
    """List a VM's disks: size, room taken on the host, and the files below.

    A disk's target is the id of its device and, unless the spec gives another
    one, its serial in the guest (/dev/disk/by-id).
    """
    from qemuctl.vm.definitions import find, load
    from qemuctl.vm.disks import disk_files
    from qemuctl.vm.resolve import image_of

    paths, spec = find(name), load(name)
    found = disk_files(spec, paths, image_of(spec))
    if json:
        print_json([{**asdict(d), "size": d.size, "used": d.used} for d in found])
        return
    rows = [_row(disk) for disk in found]
    if spec.cdrom is not None:
        iso = spec.cdrom or "(empty)"
        rows.append(("cdrom", None, None, None, "raw", "ro", iso))
    head = ("TARGET", "SERIAL", "SIZE", "USED", "FORMAT", "MODE", "FILE")
    print_table(head, rows)


def _row(disk: DiskFile) -> tuple[str | None, ...]:
    from qemuctl.units import format_rounded, format_size

    return (
        disk.target,
        disk.serial,
        format_size(disk.size) if disk.size is not None else None,
        format_rounded(disk.used) if disk.used is not None else None,
        disk.format,
        "ro" if disk.readonly else "rw",
        _chain(disk),
    )


def _chain(file: DiskFile) -> str:
    if file.problem:
        return f"{file.path} ({file.problem})"
    return " → ".join(str(layer.remote or layer.path) for layer in file.chain)
