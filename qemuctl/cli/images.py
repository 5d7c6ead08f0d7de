"""`image build`: what there is to boot without bringing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qemuctl.cli.app import complete_images, group
from qemuctl.cli.output import building
from qemuctl.cli.running import run_async
from qemuctl.errors import ImageError

image = group("image", "Images to boot from.")


@image.command(epilog="Example:  qemuctl image build tiny")
def build(
    name: Annotated[
        str,
        typer.Argument(metavar="IMAGE", help="tiny", autocompletion=complete_images),
    ],
    kernel: Annotated[
        Path | None, typer.Option(metavar="PATH", help="a kernel of your own (bzImage)")
    ] = None,
    modules: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="its modules; default /lib/modules/VERSION"),
    ] = None,
) -> None:
    """Build an image into the cache, if it is not there; prints its folder."""
    from qemuctl.image import build_tiny

    if name != "tiny":
        raise ImageError(f"no recipe for this image: {name}", hint="recipes: tiny")
    show = building("building the image tiny:")
    print(run_async(build_tiny(kernel, modules, progress=show)).folder)
