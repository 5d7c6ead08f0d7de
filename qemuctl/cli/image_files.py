"""`image create`, `info`, `resize`, `convert` and others: files, by their path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli.declare import Argument, Option
from qemuctl.cli.image_targets import (
    File,
    Format,
    Target,
    Trust,
    check_origin,
    named_format,
    new_size,
    parsed_size,
    resolve,
    seen,
    seen_format,
    writable,
)
from qemuctl.cli.images import image
from qemuctl.cli.output import confirmed, note
from qemuctl.cli.parameters import Json
from qemuctl.cli.progress import percent
from qemuctl.cli.running import for_each, run_async
from qemuctl.errors import UsageError

if TYPE_CHECKING:
    from qemuctl.image.chain import Layer
    from qemuctl.image.extents import Usage

Backing = Annotated[
    str | None, Option(metavar="FORMAT", help="what the backing file is")
]


@image.command(example="qemuctl image create disk.qcow2 60G")
def create(
    file: File,
    size: Annotated[
        str | None, Argument(metavar="SIZE", help="such as 512M or 60G")
    ] = None,
    format: Format = None,
    preallocation: Annotated[
        str | None,
        Option(metavar="HOW", help="off, metadata, falloc or full"),
    ] = None,
    backing: Annotated[
        Path | None,
        Option("--backing", metavar="BACKING", help="make an overlay on it"),
    ] = None,
    backing_format: Backing = None,
    trust_backing: Trust = False,
) -> None:
    """Create an empty image; never over a file that exists."""
    from qemuctl.image.files import create as make

    kind = named_format(writable(file), format)
    if size is None and backing is None:
        raise UsageError("give a size, or a backing file: --backing FILE")
    below = _backing_format(backing, backing_format, trust_backing)
    wanted = None if size is None else parsed_size(size)
    run_async(
        make(file, wanted, kind, preallocation, backing=backing, backing_format=below)
    )


def _backing_format(
    backing: Path | None, format: str | None, trust_backing: bool
) -> str | None:
    """The format of a backing file that is named; also looks what that has below."""
    if backing is None:
        return None
    kind = named_format(backing, format, say="--backing-format")
    check_origin(backing, kind, trust_backing)
    return kind


@image.command(example="qemuctl image info disk.qcow2")
def info(target: Target, format: Format = None, json: Json = False) -> None:
    """Show what an image is, and every file below it; also while a VM runs on it."""
    from qemuctl.cli.image_print import print_info
    from qemuctl.image.chain import chain
    from qemuctl.image.qcow2 import read_header
    from qemuctl.image.snapshots import snapshots

    path, kind = seen(target, format)
    if kind not in ("qcow2", "raw"):
        print_info([_foreign(path, kind)], None, [], json)
        return
    layers = chain(path, kind)
    header = read_header(path) if kind == "qcow2" else None
    taken = snapshots(path) if header is not None and header.snapshots else []
    print_info(layers, header, taken, json)


def _foreign(path: Path, format: str) -> Layer:
    from dataclasses import replace

    from qemuctl.image import qemu_img
    from qemuctl.image.convert import readable

    layer = readable(path, format)[0]
    return replace(layer, virtual_size=qemu_img.info(path, format)["virtual-size"])


@image.command(
    example="qemuctl image resize disk.qcow2 +20G",
    # Or `-1G` would be an option.
    words_like_options=True,
)
def resize(
    file: File,
    size: Annotated[
        str, Argument(metavar="SIZE", help="such as 80G, or by how much: +20G")
    ],
    format: Format = None,
    shrink: Annotated[
        bool, Option("--shrink", help="cut off its end, with what lies there")
    ] = False,
) -> None:
    """Give an image another size; the partitions in it stay as they are."""
    from qemuctl.image.chain import chain
    from qemuctl.image.files import resize as change

    kind = named_format(writable(file), format)
    before = chain(file, kind)[0].virtual_size
    wanted = new_size(size, before)
    if wanted < before and not shrink and sys.stdin.isatty() and sys.stderr.isatty():
        question = (
            f"cut {file} from {before} to {wanted} bytes? what lies there is lost"
        )
        shrink = confirmed(question)
        if not shrink:
            note("nothing changed")
            raise SystemExit(1)
    run_async(change(file, kind, wanted, shrink=shrink))


@image.command(example="qemuctl image convert disk.vmdk disk.qcow2")
def convert(
    source: Annotated[Path, Argument(metavar="SRC", help="an image file")],
    target: Annotated[Path, Argument(metavar="DST", help="the file to make")],
    source_format: Annotated[
        str | None, Option("--from", metavar="FORMAT", help="what SRC is")
    ] = None,
    format: Annotated[
        str | None,
        Option(metavar="FORMAT", help="qcow2, raw, vmdk, vdi, vhdx or vpc"),
    ] = None,
    compress: Annotated[
        bool, Option("--compress", help="smaller, and slower to make")
    ] = False,
    force: Annotated[
        bool, Option("--force", help="take the place of a file that exists")
    ] = False,
    trust_backing: Trust = False,
) -> None:
    """Write an image in another format, or without backing files, to one file."""
    from qemuctl.image.convert import convert as write

    kind = named_format(source, source_format, say="--from")
    wanted = named_format(writable(target), format)
    check_origin(source, kind, trust_backing)
    with percent(f"converting {source.name}") as progress:
        run_async(
            write(
                source, target, source_format=kind, format=wanted, compress=compress,
                progress=progress, replace=force, trust_backing=trust_backing,
            )
        )  # fmt: skip


@image.command(example="qemuctl image check disk.qcow2")
def check(
    target: Target,
    repair: Annotated[
        bool, Option("--repair", help="put right what can be, in the file")
    ] = False,
    format: Format = None,
    json: Json = False,
) -> None:
    """Check the tables of a qcow2 image; status 1 when something is wrong."""
    from dataclasses import asdict

    from qemuctl.cli.output import print_fields, print_json
    from qemuctl.image.check import check as look

    path, known = resolve(target)
    if repair:
        kind = named_format(writable(path), format or known)
    else:
        kind = seen_format(path, format or known)
    found = run_async(look(path, kind, repair=repair))
    if json:
        print_json(asdict(found) | {"clean": found.clean})
    else:
        counts = {name.replace("_", " "): n for name, n in asdict(found).items() if n}
        print_fields({"clean": "yes" if found.clean else "no", **counts})
    if not found.clean:
        note(f"\nhint: what can be repaired: qemuctl image check --repair {path}")
        raise SystemExit(1)


@image.command(example="qemuctl image rebase disk.qcow2 base.qcow2")
def rebase(
    file: File,
    backing: Annotated[
        Path | None, Argument(metavar="BACKING", help="its new backing file")
    ] = None,
    flatten: Annotated[
        bool, Option("--flatten", help="no backing file: all data in FILE")
    ] = False,
    unsafe: Annotated[
        bool, Option("--unsafe", help="only write the name down: it has moved")
    ] = False,
    backing_format: Backing = None,
    format: Format = None,
    trust_backing: Trust = False,
) -> None:
    """Put another backing file below an image; the guest sees no difference."""
    from qemuctl.image.files import rebase as change

    if (backing is None) != flatten:
        raise UsageError("give either a backing file or --flatten")
    kind = named_format(writable(file), format)
    below = _backing_format(backing, backing_format, trust_backing or unsafe)
    if not unsafe:
        check_origin(file, kind, trust_backing)
    with percent(f"rebasing {file.name}") as progress:
        run_async(change(file, kind, backing, below, unsafe=unsafe, progress=progress))


@image.command(example="qemuctl image commit overlay.qcow2")
def commit(file: File, format: Format = None, trust_backing: Trust = False) -> None:
    """Write what an overlay holds into its backing file; the overlay is then empty.

    Other overlays on the same backing file are spoilt by it.
    """
    from qemuctl.image.files import commit as write
    from qemuctl.paths import images_dir, kept_dir, vms_dir

    kind = named_format(writable(file), format)
    check_origin(file, kind, trust_backing)
    with percent(f"committing {file.name}") as progress:
        # What disks of VMs are made from lies there; others may be on it too.
        protected = [images_dir(), vms_dir(), kept_dir()]
        run_async(write(file, kind, progress, protected=protected))


@image.command("map", example="qemuctl image map disk.qcow2")
def show_map(target: Target, format: Format = None, json: Json = False) -> None:
    """Show where the data of an image is; also while a VM runs on it."""
    from qemuctl.cli.image_print import print_map
    from qemuctl.image.chain import chain
    from qemuctl.image.extents import extents

    path, kind = seen(target, format)
    print_map(extents(path, kind), chain(path, kind), json)


@image.command(example="qemuctl image du *.qcow2")
def du(
    targets: Annotated[
        list[str],
        Argument(metavar="TARGET…", help="image files, or names of images"),
    ],
    format: Format = None,
    json: Json = False,
) -> None:
    """Show what images take on the disk, and the files below them."""
    from qemuctl.cli.image_print import print_usage
    from qemuctl.image.extents import usage

    found: list[Usage] = []

    def look(target: str) -> None:
        found.append(usage(*seen(target, format)))

    try:
        for_each(targets, look)
    finally:
        if found:
            print_usage(found, json)
