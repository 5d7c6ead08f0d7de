"""`image snapshot`: snapshots inside a qcow2 file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from qemuctl.cli.declare import Argument
from qemuctl.cli.image_targets import (
    File,
    Format,
    Target,
    named_format,
    resolve,
    writable,
)
from qemuctl.cli.images import image
from qemuctl.cli.parameters import Json
from qemuctl.cli.running import run_async
from qemuctl.errors import ImageError

snapshot = image.group(
    "snapshot",
    "Snapshots inside a qcow2 file, while no VM runs on it.",
    example="qemuctl image snapshot ls disk.qcow2",
)
SnapshotName = Annotated[str, Argument(metavar="NAME", help="the snapshot's")]


def _qcow2(file: Path, format: str | None) -> Path:
    kind = named_format(file, format)
    if kind != "qcow2":
        raise ImageError(f"only qcow2 files hold snapshots, and this is {kind}: {file}")
    return file


@snapshot.command("create", example="qemuctl image snapshot create d.qcow2 a")
def snapshot_create(file: File, name: SnapshotName, format: Format = None) -> None:
    """Keep the present state under a name."""
    from qemuctl.image.snapshots import snapshot_create as make

    run_async(make(_qcow2(writable(file), format), name))


@snapshot.command("ls", example="qemuctl image snapshot ls disk.qcow2")
def snapshot_ls(target: Target, format: Format = None, json: Json = False) -> None:
    """List the snapshots in a file."""
    from qemuctl.cli.image_print import print_snapshots
    from qemuctl.image.snapshots import snapshots

    path, known = resolve(target)
    print_snapshots(snapshots(_qcow2(path, format or known)), json)


@snapshot.command("apply", example="qemuctl image snapshot apply d.qcow2 a")
def snapshot_apply(file: File, name: SnapshotName, format: Format = None) -> None:
    """Take the disk back to a snapshot; what it holds now is lost."""
    from qemuctl.image.snapshots import snapshot_apply as apply

    run_async(apply(_qcow2(writable(file), format), name))


@snapshot.command("rm", example="qemuctl image snapshot rm disk.qcow2 a")
def snapshot_rm(file: File, name: SnapshotName, format: Format = None) -> None:
    """Remove a snapshot; the disk stays as it is."""
    from qemuctl.image.snapshots import snapshot_delete as remove

    run_async(remove(_qcow2(writable(file), format), name))
