"""`image create`, `info`, `resize`, `convert` and others: files, by their path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qemuctl.cli.app import Json
from qemuctl.cli.images import image
from qemuctl.cli.output import note
from qemuctl.cli.progress import percent
from qemuctl.cli.running import for_each, run_async
from qemuctl.errors import ImageError, UsageError

if TYPE_CHECKING:
    from qemuctl.image.chain import Layer
    from qemuctl.image.extents import Usage

_SUFFIXES = {
    ".qcow2": "qcow2",
    ".raw": "raw",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhdx": "vhdx",
    ".vhd": "vpc",
    ".vpc": "vpc",
}

File = Annotated[Path, typer.Argument(metavar="FILE", help="an image file")]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="an image file, or an image's name")
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="what it is: qcow2 or raw"),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-backing", help="its backing files may lie anywhere"),
]


def resolve(target: str) -> tuple[Path, str | None]:
    """The file that is meant, and its format where that is known: a name without
    a slash may be that of an image in the store."""
    from qemuctl.image import store

    if target in store.names():
        found = store.find(target)
        if found.disk is not None:
            return found.disk, found.manifest.format
    return Path(target), None


def writable(path: Path) -> Path:
    """The file itself, unless others are made from it.

    Raises ImageError: to write to it would spoil them.
    """
    from qemuctl.paths import images_dir
    from qemuctl.vm.users import built_on

    where = path.resolve()
    if where.is_relative_to(images_dir().resolve()):
        raise ImageError(
            f"nobody writes to an image in the store: {path}",
            hint=f"work on a copy: qemuctl image convert {path} copy.qcow2",
        )
    above = built_on(path)
    if above:
        raise ImageError(f"disks of {', '.join(above)} are made from it: {path}")
    return path


def named_format(path: Path, format: str | None) -> str:
    """The format that is said or that the file's name ends with; nothing is guessed.

    Raises UsageError.
    """
    found = format or _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"which format is it? {path}",
            hint="say it: --format qcow2, or a name that ends with .qcow2 or .raw",
        )
    return found


def _seen_format(path: Path, format: str | None) -> str:
    """The same for a command that only reads: there the header may decide."""
    from qemuctl.image.qcow2 import is_qcow2

    known = format or _SUFFIXES.get(path.suffix.lower())
    if known is None:
        known = "qcow2" if is_qcow2(path) else "raw"
        note(f"read as {known}, by how it begins (--format names another): {path}")
    return known


def _size(text: str) -> int:
    from qemuctl.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_origin(path: Path, format: str, trust_backing: bool) -> None:
    """Before the content of backing files is copied, or they are written to: are
    they where the user's own would be? Raises ImageError."""
    from qemuctl.image.chain import check_trusted
    from qemuctl.paths import images_dir, vms_dir

    if format == "qcow2":
        inside = [path.absolute().parent, images_dir(), vms_dir()]
        check_trusted(path, format, inside=inside, trust_backing=trust_backing)


@image.command(epilog="Example:  qemuctl image create disk.qcow2 60G")
def create(
    file: File,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="such as 512M or 60G")],
    format: Format = None,
    preallocation: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="off, metadata, falloc or full"),
    ] = None,
) -> None:
    """Create an empty image; never over a file that exists."""
    from qemuctl.image.files import create as make

    run_async(make(file, _size(size), named_format(file, format), preallocation))


@image.command(epilog="Example:  qemuctl image info disk.qcow2")
def info(target: Target, format: Format = None, json: Json = False) -> None:
    """Show what an image is, and every file below it; also while a VM runs on it."""
    from qemuctl.cli.image_print import print_info
    from qemuctl.image.chain import chain
    from qemuctl.image.qcow2 import read_header
    from qemuctl.image.snapshots import snapshots

    path, known = resolve(target)
    kind = _seen_format(path, format or known)
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


@image.command(epilog="Example:  qemuctl image resize disk.qcow2 80G")
def resize(
    file: File,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="such as 80G")],
    format: Format = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="cut off its end, with what lies there")
    ] = False,
) -> None:
    """Give an image another size; the partitions in it stay as they are."""
    from qemuctl.image.chain import chain
    from qemuctl.image.files import resize as change

    kind, wanted = named_format(writable(file), format), _size(size)
    before = chain(file, kind)[0].virtual_size
    if wanted < before and not shrink and sys.stdin.isatty() and sys.stderr.isatty():
        question = (
            f"cut {file} from {before} to {wanted} bytes? what lies there is lost"
        )
        shrink = typer.confirm(question, err=True)
        if not shrink:
            note("nothing changed")
            raise SystemExit(1)
    run_async(change(file, kind, wanted, shrink=shrink))


@image.command(epilog="Example:  qemuctl image convert disk.vmdk disk.qcow2")
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="an image file")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="the file to make")],
    source_format: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="what SRC is")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="qcow2, raw, vmdk, vdi, vhdx or vpc"),
    ] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="smaller, and slower to make")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="take the place of a file that exists")
    ] = False,
    trust_backing: Trust = False,
) -> None:
    """Write an image in another format, or without backing files, to one file."""
    from qemuctl.image.convert import convert as write

    if source_format is None and source.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"which format is it? {source}", hint="say it: --from qcow2")
    kind, wanted = named_format(source, source_format), named_format(target, format)
    _check_origin(source, kind, trust_backing)
    if force:
        writable(target)
    with percent(f"converting {source.name}") as progress:
        run_async(
            write(
                source, target, source_format=kind, format=wanted, compress=compress,
                progress=progress, replace=force, trust_backing=trust_backing,
            )
        )  # fmt: skip


@image.command(epilog="Example:  qemuctl image check disk.qcow2")
def check(
    file: File,
    repair: Annotated[
        bool, typer.Option("--repair", help="put right what can be, in the file")
    ] = False,
    format: Format = None,
    json: Json = False,
) -> None:
    """Check the tables of a qcow2 image; status 1 when something is wrong."""
    from dataclasses import asdict

    from qemuctl.cli.output import print_fields, print_json
    from qemuctl.image.check import check as look

    kind = named_format(file, format) if repair else _seen_format(file, format)
    if repair:
        writable(file)
    found = run_async(look(file, kind, repair=repair))
    if json:
        print_json(asdict(found) | {"clean": found.clean})
    else:
        counts = {name.replace("_", " "): n for name, n in asdict(found).items() if n}
        print_fields({"clean": "yes" if found.clean else "no", **counts})
    if not found.clean:
        note(f"\nhint: what can be repaired: qemuctl image check --repair {file}")
        raise SystemExit(1)


@image.command(epilog="Example:  qemuctl image rebase disk.qcow2 base.qcow2")
def rebase(
    file: File,
    backing: Annotated[
        Path | None, typer.Argument(metavar="[BACKING]", help="its new backing file")
    ] = None,
    flatten: Annotated[
        bool, typer.Option("--flatten", help="no backing file: all data in FILE")
    ] = False,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="only write the name down: it has moved")
    ] = False,
    backing_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="what BACKING is")
    ] = None,
    format: Format = None,
    trust_backing: Trust = False,
) -> None:
    """Put another backing file below an image; the guest sees no difference."""
    from qemuctl.image.files import rebase as change

    if (backing is None) != flatten:
        raise UsageError("give either a backing file or --flatten")
    kind = named_format(writable(file), format)
    if backing is not None and backing_format is None:
        if backing.suffix.lower() not in _SUFFIXES:
            raise UsageError(
                f"which format is it? {backing}", hint="say it: --backing-format qcow2"
            )
        backing_format = named_format(backing, None)
    if not unsafe:
        _check_origin(file, kind, trust_backing)
    with percent(f"rebasing {file.name}") as progress:
        run_async(
            change(
                file, kind, backing, backing_format, unsafe=unsafe, progress=progress
            )
        )


@image.command(epilog="Example:  qemuctl image commit overlay.qcow2")
def commit(file: File, format: Format = None, trust_backing: Trust = False) -> None:
    """Write what an overlay holds into its backing file; the overlay is then empty.

    Other overlays on the same backing file are spoilt by it.
    """
    from qemuctl.image.files import commit as write
    from qemuctl.paths import images_dir, vms_dir

    kind = named_format(writable(file), format)
    _check_origin(file, kind, trust_backing)
    with percent(f"committing {file.name}") as progress:
        # What disks of VMs are made from lies there; others may be on it too.
        run_async(write(file, kind, progress, protected=[images_dir(), vms_dir()]))


@image.command("map", epilog="Example:  qemuctl image map disk.qcow2")
def show_map(target: Target, format: Format = None, json: Json = False) -> None:
    """Show where the data of an image is; also while a VM runs on it."""
    from qemuctl.cli.image_print import print_map
    from qemuctl.image.chain import chain
    from qemuctl.image.extents import extents

    path, known = resolve(target)
    kind = _seen_format(path, format or known)
    print_map(extents(path, kind), chain(path, kind), json)


@image.command(epilog="Example:  qemuctl image du *.qcow2")
def du(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="TARGET…", help="image files, or names of images"),
    ],
    format: Format = None,
    json: Json = False,
) -> None:
    """Show what images take on the disk, and the files below them."""
    from qemuctl.cli.image_print import print_usage
    from qemuctl.image.extents import usage

    found: list[Usage] = []

    def look(target: str) -> None:
        path, known = resolve(target)
        found.append(usage(path, _seen_format(path, format or known)))

    try:
        for_each(targets, look)
    finally:
        if found:
            print_usage(found, json)
