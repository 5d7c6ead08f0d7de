"""Where the tiny image is, built or not."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.image.manifest import FILE, read_manifest
from qemuctl.image.model import Image
from qemuctl.image.names import RECIPES as RECIPES
from qemuctl.image.names import TINY, recipes
from qemuctl.image.qemu_img import check_readable
from qemuctl.paths import cache_home


def fingerprint(recipe: Path) -> hashlib._Hash:
    """A hash of all files of a recipe."""
    digest = hashlib.sha256()
    for path in sorted(recipe.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(recipe).as_posix().encode())
            digest.update(path.read_bytes())
    return digest


def tiny(kernel: Path | None = None, modules: Path | None = None) -> Image:
    """The tiny image, built or not; with a kernel of the user's, a variant of it.

    Its folder is named by a hash of all that goes into it, so that a changed
    recipe or kernel gives a new image and running VMs keep theirs.
    """
    recipe = recipes() / TINY
    digest = fingerprint(recipe)
    if kernel is not None:
        check_readable(kernel, "the kernel")
        digest.update(kernel.read_bytes())
        # Which modules come along is found by the kernel's version in these.
        for folder in (Path("/lib/modules"), kernel.parent.parent / "lib/modules"):
            known = sorted(folder.glob("*")) if folder.is_dir() else []
            digest.update(f"{folder}: {known}".encode())
    if modules is not None:
        if not modules.is_dir():
            raise ImageError(f"no such folder of modules: {modules}")
        digest.update(f"{modules.absolute()} {modules.stat().st_mtime_ns}".encode())
    folder = cache_home() / "images" / f"{TINY}-{digest.hexdigest()[:12]}"
    return Image(TINY, folder, read_manifest(recipe / FILE))
