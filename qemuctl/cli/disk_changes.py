"""`disk add`, `disk rm`, `disk resize`, `disk set`: now, at the next start, or both."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from qemuctl.cli.declare import Argument, Option
from qemuctl.cli.output import note, print_json
from qemuctl.cli.parameters import Json, Name, Timeout, seconds
from qemuctl.cli.running import run_async
from qemuctl.cli.scope import Both, Config, Live, changed, scope, words_of
from qemuctl.errors import HotplugError, SpecError, UsageError

if TYPE_CHECKING:
    from qemuctl.hotplug.disks.results import Changed, DiskLimits, RemovedDisk
    from qemuctl.spec import Disk

R = TypeVar("R", bound="Changed")

Target = Annotated[
    str, Argument(metavar="TARGET", help="the disk's id, as disk ls shows it")
]


def add(
    name: Name,
    what: Annotated[
        str | None,
        Argument(metavar="[SIZE|FILE]", help="short for --size SIZE or --path FILE"),
    ] = None,
    size: Annotated[
        str | None, Option(metavar="SIZE", help="make a new one, such as 10G")
    ] = None,
    path: Annotated[
        Path | None, Option(metavar="FILE", help="an image that is there")
    ] = None,
    target: Annotated[
        str | None,
        Option(
            metavar="ID",
            help="its id, such as vdb; the guest chooses its own names and knows the "
            "disk by its serial (default: the next free diskN)",
        ),
    ] = None,
    serial: Annotated[
        str | None, Option(metavar="TEXT", help="default: its id")
    ] = None,
    bus: Annotated[str, Option(help="virtio or scsi")] = "virtio",
    format: Annotated[
        str | None,
        Option(help="qcow2 or raw; default: by the suffix, qcow2 for a new one"),
    ] = None,
    readonly: Annotated[
        bool, Option("--readonly", help="the guest cannot write to it")
    ] = False,
    cache: Annotated[
        str | None, Option(metavar="MODE", help="as QEMU's -drive cache=")
    ] = None,
    iops: Annotated[
        int | None, Option(metavar="N", help="requests a second, at most")
    ] = None,
    bps: Annotated[
        str | None, Option(metavar="SIZE", help="bytes a second, at most")
    ] = None,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Add a disk to a VM, while it runs and at its next start.

    In the guest it is /dev/disk/by-id/…-SERIAL, whatever letter it gets.
    """
    size, path = _new_or_there(what, size, path)
    fields = {
        "id": target,
        "path": str(path.absolute()) if path is not None else None,
        "size": size,
        "serial": serial,
        "bus": bus,
        "format": format,
        "readonly": readonly or None,
        "cache": cache,
        "iops": iops,
        "bps": bps,
    }
    disk = _disk({key: value for key, value in fields.items() if value is not None})
    wanted = scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.disks import in_spec

        return in_spec.add(name, disk)

    done = changed(name, wanted, off, lambda vm, where: vm.disks.add(disk, scope=where))
    if json:
        print_json(asdict(done))
        return
    where = f", {done.guest} in the guest" if done.guest else ""
    note(f"added {done.id}{where}: {done.path}{words_of(done)}")
    _say_left(name)


def _say_left(name: str) -> None:
    """Says which files removed disks have left: a new disk gets another one."""
    from qemuctl.process import held
    from qemuctl.registry.leftover_disks import left_files, way_back
    from qemuctl.registry.vms import find

    if not held(find(name).lock):
        for path in left_files(name):
            note(way_back(name, path))


def _new_or_there(
    what: str | None, size: str | None, path: Path | None
) -> tuple[str | None, Path | None]:
    """The size of a new disk or the file of one that is there. Raises UsageError."""
    from qemuctl.units import parse_size

    if [what, size, path].count(None) != 2:
        raise UsageError("give either --size or --path")
    if what is not None:
        try:
            parse_size(what)
        except ValueError:
            return None, Path(what)
    return what or size, path


def remove(
    name: Name,
    target: Target,
    delete: Annotated[
        bool, Option("--delete", help="its file too, if qemuctl made it")
    ] = False,
    force: Annotated[
        bool, Option("--force", help="also the disk that the guest runs from")
    ] = False,
    timeout: Timeout = "20",
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Take a disk away from a VM; its file stays (disk ls shows it).

    Exit status 0: removed; 1: refused; 3: pending, the guest may still let go of
    it, and a later command does the rest.
    """
    patience = seconds(timeout)
    wanted = scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.disks import in_spec

        return in_spec.remove(name, target, delete=delete)

    try:
        done = changed(
            name, wanted, off,
            lambda vm, where: vm.disks.remove(
                target, scope=where, timeout=patience, force=force, delete=delete
            ),
        )  # fmt: skip
    except HotplugError as error:
        if json:
            print_json({"id": target, "outcome": error.outcome, "error": error.message})
        raise
    if json:
        print_json(asdict(done))
        return
    _say_removed(name, done)


def _say_removed(name: str, done: RemovedDisk) -> None:
    from qemuctl.hotplug.disks.in_spec import disk_of

    file = again = ""
    if done.path is not None:
        gone, stays = f", with its file {done.path}", f"; {done.path} stays"
        file = gone if done.deleted else stays
    if not done.configured and disk_of(name, done.id) is not None:
        again = " (its next start has it again)"
    elif not done.live:
        again = words_of(done)
    note(f"removed {done.id}{file}{again}")


def resize(
    name: Name,
    target: Target,
    size: Annotated[
        str, Argument(metavar="SIZE", help="such as 20G, or +1G for so much more")
    ],
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Give a disk more room, also while the guest uses it.

    Its partitions and file systems stay as they are: growing them is up to the
    guest.
    """
    from qemuctl.units import format_size

    number, relative = _size(size.removeprefix("+")), size.startswith("+")
    wanted = scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.disks import size_and_limits

        return run_async(
            size_and_limits.resize(name, target, number, relative=relative)
        )

    done = changed(
        name, wanted, off,
        lambda vm, where: vm.disks.resize(
            target, number, relative=relative, scope=where
        ),
    )  # fmt: skip
    if json:
        print_json(asdict(done))
        return
    what = f"{format_size(done.before_bytes)} → {format_size(done.size_bytes)}"
    where = f", {done.guest} in the guest" if done.guest else ""
    note(f"{target}: {what}{where}")
    if done.size_bytes > done.before_bytes:
        note(
            "its partitions and file systems are as large as before: cloud-init grows "
            "the root's at a boot; others grow in the guest, by growpart, then "
            "resize2fs or xfs_growfs"
        )


def limit(
    name: Name,
    target: Target,
    iops: Annotated[
        int | None, Option(metavar="N", help="requests a second, 0 for no limit")
    ] = None,
    bps: Annotated[
        str | None,
        Option(metavar="SIZE", help="bytes a second, such as 10M, 0 for none"),
    ] = None,
    live: Live = False,
    config: Config = False,
    both: Both = False,
    json: Json = False,
) -> None:
    """Limit what a disk may do in a second, so that others get their share."""
    rate = _size(bps) if bps is not None else None
    if iops is not None and iops < 0:
        raise UsageError(f"not a number of requests: {iops}")
    wanted = scope(live, config, both)

    def off() -> Any:
        from qemuctl.hotplug.disks import size_and_limits

        return size_and_limits.limit(name, target, iops=iops, bytes_per_second=rate)

    done = changed(
        name, wanted, off,
        lambda vm, where: vm.disks.limit(
            target, iops=iops, bytes_per_second=rate, scope=where
        ),
    )  # fmt: skip
    if json:
        print_json(asdict(done))
        return
    _say_limits(done)


def _say_limits(done: DiskLimits) -> None:
    from qemuctl.units import format_size

    speed = done.bytes_per_second
    note(
        f"{done.id}: {done.iops or 'any number of'} requests and "
        f"{format_size(speed) if speed else 'any number of'} bytes a second"
        f"{words_of(done)}"
    )


def _disk(fields: dict[str, Any]) -> Disk:
    """The disk that the flags describe. Raises SpecError with status 2."""
    from qemuctl.spec import validate

    try:
        return validate({"name": "x", "disks": [fields]}).disks[0]
    except SpecError as error:
        raise UsageError(error.problem, hint=error.hint) from error


def _size(text: str) -> int:
    from qemuctl.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from error
