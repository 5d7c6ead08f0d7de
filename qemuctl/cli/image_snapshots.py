"""`image snapshot`: snapshots inside a qcow2 file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qemuctl.cli.app import Json, typer_app
from qemuctl.cli.image_targets import (
    File,
    Format,
    Target,
    named_format,
    resolve,
    writable,
)
from qemuctl.cli.images import image
from qemuctl.cli.running import run_async
from qemuctl.errors import ImageError

snapshot = typer_app(
    "Snapshots inside a qcow2 file, while no VM runs on it.",
    no_args_is_help=True,
    add_completion=False,
    epilog="Example:  qemuctl image snapshot ls disk.qcow2",
)
image.add_typer(snapshot, name="snapshot")
SnapshotName = Annotated[str, typer.Argument(metavar="NAME", help="the snapshot's")]


def _qcow2(file: Path, format: str | None) -> Path:
    kind = named_format(file, format)
    if kind != "qcow2":
        raise ImageError(f"only qcow2 files hold snapshots, and this is {kind}: {file}")
    return file


@snapshot.command("create", epilog="Example:  qemuctl image snapshot create d.qcow2 a")
def snapshot_create(file: File, name: SnapshotName, format: Format = None) -> None:
    """Keep the present state under a name."""
    from qemuctl.image.snapshots import snapshot_create as make

    run_async(make(_qcow2(writable(file), format), name))


@snapshot.command("ls", epilog="Example:  qemuctl image snapshot ls disk.qcow2")
def snapshot_ls(target: Target, format: Format = None, json: Json = False) -> None:
    """List the snapshots in a file."""
    from qemuctl.cli.image_print import print_snapshots
    from qemuctl.image.snapshots import snapshots

    path, known = resolve(target)
    print_snapshots(snapshots(_qcow2(path, format or known)), json)


@snapshot.command("apply", epilog="Example:  qemuctl image snapshot apply d.qcow2 a")
def snapshot_apply(file: File, name: SnapshotName, format: Format = None) -> None:
    """Take the disk back to a snapshot; what it holds now is lost."""
    from qemuctl.image.snapshots import snapshot_apply as apply

    run_async(apply(_qcow2(writable(file), format), name))


@snapshot.command("rm", epilog="Example:  qemuctl image snapshot rm disk.qcow2 a")
def snapshot_rm(file: File, name: SnapshotName, format: Format = None) -> None:
    """Remove a snapshot; the disk stays as it is."""
    from qemuctl.image.snapshots import snapshot_delete as remove

    run_async(remove(_qcow2(writable(file), format), name))
