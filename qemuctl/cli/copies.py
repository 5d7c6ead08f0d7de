"""`clone`, `export`, `import`: a VM a second time, here or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import note, tell
from qemuctl.cli.parameters import Json, Name
from qemuctl.cli.progress import percent, transfer
from qemuctl.cli.running import run_async
from qemuctl.errors import UsageError


@command("clone", example="qemuctl clone web web2 --linked")
def clone(
    source: Name,
    target: Annotated[str, Argument(metavar="NEW", help="the clone's name")],
    linked: Annotated[
        bool, Option("--linked", help="share what the disks hold now; at once")
    ] = False,
    full: Annotated[
        bool, Option("--full", help="copy the disks whole (the default)")
    ] = False,
    json: Json = False,
) -> None:
    """Make a second VM from one that is off, with addresses of its own.

    A linked clone needs its source, which then cannot be removed or renamed.
    """
    from qemuctl.copies.clone import clone as cloning

    if linked and full:
        raise UsageError("either --linked or --full")
    with percent(f"copying the disks of {source}") as progress:
        copied = run_async(cloning(source, target, linked=linked, progress=progress))
    words = f"cloned {source}; start it with: qemuctl start {target}"
    tell({"name": target, "source": source, "linked": linked}, words, as_json=json)
    if linked:
        for disk in copied:
            note(
                f"note: copied, for only qcow2 disks of its own are linked: {disk.path}"
            )


@command("export", example="qemuctl export web web.tar")
def export(
    name: Name,
    file: Annotated[Path, Argument(metavar="FILE", help="the archive to make")],
    compress: Annotated[bool, Option("--compress", help="smaller, and slower")] = False,
    json: Json = False,
) -> None:
    """Write a VM that is off into one file: its spec and flattened disks."""
    from qemuctl.copies.archive import export as exporting
    from qemuctl.registry.vms import load

    if str(file) == "-":
        raise UsageError("an archive is a file, it cannot go to standard output")
    had_cd = bool(load(name).cdrom)
    with percent(f"exporting {name}") as progress:
        run_async(exporting(name, file, compress=compress, progress=progress))
    facts = {"name": name, "file": str(file), "size": file.stat().st_size}
    tell(facts, f"exported {name}: {file}", as_json=json)
    if had_cd:
        note("note: the CD is not in it; the drive will be empty")


@command("import", example="qemuctl import web.tar --name web2")
def import_(
    file: Annotated[Path, Argument(metavar="FILE", help="an exported VM")],
    name: Annotated[
        str | None, Option(help="the VM's name; default: as it was")
    ] = None,
    trust: Annotated[
        bool,
        Option("--trust", help="also files of this host and arguments for QEMU"),
    ] = False,
    json: Json = False,
) -> None:
    """Make a VM of a file that `export` wrote."""
    from qemuctl.copies.archive import import_ as importing

    with transfer(f"importing {file.name}") as progress:
        made = run_async(importing(file, name=name, trust=trust, progress=progress))
    words = f"imported {made}; start it with: qemuctl start {made}"
    tell({"name": made, "file": str(file)}, words, as_json=json)
