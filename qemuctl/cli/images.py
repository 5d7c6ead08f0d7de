"""`image ls`, `pull`, `build`, `import` and others: the images in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Argument, Option, group
from qemuctl.cli.output import building, note, print_json, print_table, print_text
from qemuctl.cli.parameters import Json, complete_images
from qemuctl.cli.progress import percent, transfer
from qemuctl.cli.running import for_each, run_async
from qemuctl.errors import ImageError, StateError, UsageError

if TYPE_CHECKING:
    from qemuctl.image.model import Image

image = group("image", "Images to boot from, and image files.")

ImageName = Annotated[
    str,
    Argument(metavar="IMAGE", help="an image's name", autocompletion=complete_images),
]
ImageNames = Annotated[
    list[str],
    Argument(metavar="IMAGE…", help="names of images", autocompletion=complete_images),
]


def complete_catalog(incomplete: str) -> list[str]:
    """Names that can be pulled, for the shell's completion."""
    from qemuctl.image.names import in_catalog

    return [name for name in in_catalog() if name.startswith(incomplete)]


def complete_recipes(incomplete: str) -> list[str]:
    """Names that can be built, for the shell's completion."""
    from qemuctl.image.names import RECIPES

    return [name for name in RECIPES if name.startswith(incomplete)]


NewName = Annotated[str | None, Option("--name", help="what to call it in the store")]


@image.command("ls", example="qemuctl image ls --available")
def list_images(
    available: Annotated[
        bool, Option("--available", help="what can be pulled or built, too")
    ] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="names only")] = False,
    json: Json = False,
) -> None:
    """List the images in the store, or with --available all that there are."""
    rows = _present()
    if available:
        known = {row["name"] for row in rows}
        rows += [row for row in _available() if row["name"] not in known]
    if quiet:
        for row in rows:
            print_text(row["name"])
    elif json:
        print_json(rows)
    else:
        from qemuctl.units import format_rounded

        print_table(
            ("NAME", "STATE", "FORMAT", "SIZE", "USED", "USER", "SOURCE"),
            (
                (
                    row["name"],
                    row["state"],
                    row["format"],
                    format_rounded(row["size"]) if row["size"] else None,
                    format_rounded(row["used"]) if row["used"] else None,
                    row["user"],
                    row["source"],
                )
                for row in rows
            ),
        )


def _row(name: str, state: str, **known: Any) -> dict[str, Any]:
    fields = ("format", "size", "used", "user", "source")
    return {"name": name, "state": state, **dict.fromkeys(fields), **known}


def _present() -> list[dict[str, Any]]:
    from qemuctl.image import store

    rows = []
    for name in (*store.names(), store.TINY):
        try:
            found = store.find(name)
        except ImageError as error:
            rows.append(_row(name, "damaged", source=error.message))
            continue
        if found.present:
            rows.append(_image_row(found))
    return rows


def _image_row(found: Image) -> dict[str, Any]:
    about = found.manifest
    files = [path.stat() for path in found.folder.iterdir() if path.is_file()]
    return _row(
        found.name,
        "ready",
        format=about.format or "kernel",
        size=about.virtual_size,
        used=sum(status.st_blocks for status in files) * 512,
        user=about.user,
        source=about.source or f"recipe {found.name}",
    )


def _available() -> list[dict[str, Any]]:
    from qemuctl.image.catalog import catalog
    from qemuctl.image.fetch import shown
    from qemuctl.image.names import RECIPES

    built = [_row(name, "to build", source=f"recipe {name}") for name in RECIPES]
    return built + [
        _row(
            name,
            "to pull",
            format=entry.format,
            user=entry.user,
            source=shown(entry.url),
        )
        for name, entry in catalog().items()
    ]


@image.command(example="qemuctl image pull debian-13")
def pull(
    what: Annotated[
        str,
        Argument(
            metavar="NAME|URL",
            help="of the catalogue, or any",
            autocompletion=complete_catalog,
        ),
    ],
    name: NewName = None,
    sha256: Annotated[
        str | None, Option(metavar="HEX", help="what its SHA-256 must be")
    ] = None,
) -> None:
    """Download an image into the store, verified; prints its name.

    What was interrupted goes on where it was. `image ls --available` shows
    the catalogue; your own is merged over it (`qemuctl help images`).
    """
    from qemuctl.image.acquire import pull as pulling
    from qemuctl.image.checksums import parse_checksum
    from qemuctl.image.fetch import shown

    try:
        expected = parse_checksum(sha256) if sha256 else None
        if expected is not None and expected.algorithm != "sha256":
            raise ValueError(f"not a SHA-256: {sha256}")
    except ValueError as error:
        raise UsageError(
            f"--sha256: {error}",
            hint="give the 64 digits that the distributor publishes, or that "
            "sha256sum prints of the right file",
        ) from error
    with transfer(f"pulling {shown(what)}") as progress:
        work = pulling(what, name=name, expected=expected, progress=progress, note=note)
        print(run_async(work).name)


@image.command(example="qemuctl image build debian --suite trixie")
def build(
    recipe: Annotated[
        str,
        Argument(
            metavar="RECIPE", help="tiny or debian", autocompletion=complete_recipes
        ),
    ],
    name: NewName = None,
    suite: Annotated[
        str | None, Option(help="debian: another suite than the host's")
    ] = None,
    kernel: Annotated[
        Path | None,
        Option(metavar="PATH", help="tiny: a kernel of your own (bzImage)"),
    ] = None,
    modules: Annotated[
        Path | None,
        Option(metavar="DIR", help="its modules; default /lib/modules/VERSION"),
    ] = None,
) -> None:
    """Build an image from its recipe, if it is not there; prints its folder."""
    from qemuctl.image import recipe as recipes

    if recipe not in recipes.RECIPES:
        raise ImageError(
            f"no recipe for this image: {recipe}",
            hint=f"recipes: {', '.join(recipes.RECIPES)}",
        )
    show = building(f"building the image {recipe}:")
    if recipe == "tiny":
        if name or suite:
            raise UsageError("tiny has no --name and no --suite")
        work = recipes.build_tiny(kernel, modules, progress=show)
    else:
        if kernel or modules:
            raise UsageError("only tiny takes --kernel and --modules")
        if suite is not None:
            recipes.check_suite(suite)
        default = recipe if suite is None else f"{recipe}-{suite}"
        name = default if name is None else name
        work = recipes.build(recipe, name, suite=suite, progress=show)
    print(run_async(work).folder)


@image.command("import", example="qemuctl image import ./disk.vmdk --name old")
def import_(
    file: Annotated[Path, Argument(metavar="FILE", help="a disk image")],
    name: NewName = None,
    format: Annotated[
        str | None,
        Option(metavar="FORMAT", help="what FILE is; default: by its suffix"),
    ] = None,
    user: Annotated[
        str | None, Option(help="it has cloud-init, whose user this is")
    ] = None,
    trust_backing: Annotated[
        bool, Option("--trust-backing", help="its backing files may lie anywhere")
    ] = False,
) -> None:
    """Copy an image file into the store; prints its name.

    The root disk of a VM brings the kernel of the image that it was made from.
    """
    from qemuctl.image.acquire import import_file
    from qemuctl.registry.origin import origin_of

    with percent(f"importing {file.name}") as progress:
        work = import_file(
            file, name=name, format=format, user=user, trust_backing=trust_backing,
            like=origin_of(file), progress=progress,
        )  # fmt: skip
        print(run_async(work).name)


@image.command(example="qemuctl image verify debian-13")
def verify(names: ImageNames) -> None:
    """Check that images are still what came into the store."""
    from qemuctl.image import store
    from qemuctl.image.verify import verify as verifying

    def check(name: str) -> None:
        with transfer(f"verifying {name}") as progress:
            run_async(verifying(store.find(name), progress=progress))
        note(f"{name} is as it was")

    for_each(names, check)


@image.command(example="qemuctl image rm debian-13")
def rm(names: ImageNames) -> None:
    """Remove images that no VM needs."""
    for_each(names, _remove)


def _remove(name: str) -> None:
    from qemuctl.image import store
    from qemuctl.registry.file_users import needing

    with store.steady(alone=True):
        # The tiny image is built again when a VM wants it.
        needed = needing(store.folder_of(name)) if name != store.TINY else []
        if needed:
            raise StateError(
                f"remove the image {name}", "needed", f"needed by {', '.join(needed)}",
                hint="remove these first",
            )  # fmt: skip
        store.remove(name)
    note(f"removed the image {name}")


@image.command(example="qemuctl image prune --all --dry-run")
def prune(
    every: Annotated[
        bool, Option("--all", "-a", help="also images that no VM needs")
    ] = False,
    dry_run: Annotated[bool, Option(help="only say what would go")] = False,
    json: Json = False,
) -> None:
    """Remove broken downloads, what crashes left, and tiny images of old recipes."""
    from qemuctl.image import store
    from qemuctl.registry.prune import prune as pruning
    from qemuctl.registry.prune import to_prune
    from qemuctl.units import format_rounded

    with store.steady(alone=True):
        found = to_prune(unused=every)
        removed = found if dry_run else pruning(found)
    for item in found:
        if item not in removed:
            note(f"not removed, in use or not yours: {item.path}")
    if json:
        print_json(
            [{"what": i.what, "path": str(i.path), "used": i.used} for i in removed]
        )
    elif not found:
        note("nothing to remove")
    elif removed:
        print_table(
            ("WHAT", "USED", "PATH"),
            ((item.what, format_rounded(item.used), item.path) for item in removed),
        )
        total = format_rounded(sum(item.used for item in removed))
        note(f"{total} would be freed" if dry_run else f"{total} freed")
