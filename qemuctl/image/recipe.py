"""Images that are built here, each from its recipe below ``images/``.

``images/NAME/build OUT [options]`` makes the files, tells its stages on
standard output, and says on standard error why it failed; ``image.yaml``
beside it holds what is known of the image.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from qemuctl.durable import move, sync_tree
from qemuctl.errors import ImageError, UsageError
from qemuctl.image import store
from qemuctl.image.claim import claimed
from qemuctl.image.kept import run_kept
from qemuctl.image.manifest import FILE, read_manifest, sha256_of, sums_beside
from qemuctl.image.model import Image
from qemuctl.image.names import RECIPES as RECIPES
from qemuctl.image.names import TINY, recipes
from qemuctl.image.qcow2 import read_header
from qemuctl.image.tiny_image import fingerprint, tiny
from qemuctl.paths import images_dir, private_dir
from qemuctl.process.working import making
from qemuctl.spec import validate_name
from qemuctl.thread import in_thread

Stages = Callable[[str], None]
_SUITE = re.compile(r"[a-z][a-z0-9.-]*")


def recipe_hash(recipe: str, options: Sequence[str] = ()) -> str:
    """What an image's manifest says of the recipe that it was built from."""
    digest = fingerprint(recipes() / recipe)
    digest.update("\0".join(options).encode())
    return digest.hexdigest()[:12]


async def build_tiny(
    kernel: Path | None = None,
    modules: Path | None = None,
    *,
    progress: Stages | None = None,
) -> Image:
    """The tiny image, built if it is not there; ``progress`` gets its stages.

    Several processes that want it at once build it once. It appears whole or
    not at all. Raises ImageError with the recipe's own words.
    """
    image = tiny(kernel, modules)
    if image.present:
        return image
    options = ["--kernel", os.fspath(kernel)] if kernel else []
    options += ["--modules", os.fspath(modules)] if modules else []
    folder = private_dir(image.folder.parent)
    async with claimed(folder / ".lock"):
        if not image.present:
            for left in folder.glob(".building-*"):  # of whoever had the lock before
                shutil.rmtree(left, ignore_errors=True)
            with making(folder, ".building-") as made:
                await _run(TINY, [os.fspath(made), *options], progress)
                await in_thread(partial(sync_tree, made))
                move(made, image.folder)
    return image


async def build(
    recipe: str,
    name: str,
    *,
    suite: str | None = None,
    progress: Stages | None = None,
) -> Image:
    """The image ``name`` in the store, built from a recipe if it is not there.

    ``suite`` is the release of its distribution, by default this host's. It
    appears whole or not at all. Raises ImageError with the recipe's own words,
    SpecError for a bad name, UsageError for a suite that can be none.
    """
    validate_name(name)
    options = ["--suite", check_suite(suite)] if suite is not None else []
    source = recipes() / recipe
    hashed = recipe_hash(recipe, options)
    async with claimed(private_dir(images_dir()) / f".build-{name}.lock"):
        if name in store.names() and store.find(name).manifest.recipe == hashed:
            return store.find(name)
        for left in store.leftovers():  # a killed build may have filled the disk
            store.discard(left)
        with store.fresh(name) as folder:
            await _run(recipe, [os.fspath(folder), *options], progress)
            disk = folder / "disk.qcow2"
            described = {
                "source": " ".join(["recipe", recipe, *options]),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "format": "qcow2",
                "virtual_size": read_header(disk).virtual_size,
                "sha256": await in_thread(partial(sha256_of, disk)),
                "files": await in_thread(partial(sums_beside, disk)),
                "recipe": hashed,
            }
            known = read_manifest(source / FILE)
            store.describe(folder, known.model_copy(update=described))
            await in_thread(partial(sync_tree, folder))
    return store.find(name)


def check_suite(suite: str) -> str:
    """The suite. Raises UsageError unless it can be a release's name."""
    if not _SUITE.fullmatch(suite):
        raise UsageError(
            f"not the name of a release: {suite!r}", hint="one is such as trixie"
        )
    return suite


async def _run(recipe: str, arguments: Sequence[str], stages: Stages | None) -> None:
    """Runs a recipe; no part of it outlives us."""
    argv = [os.fspath(recipes() / recipe / "build"), *arguments]

    def told(line: str) -> None:
        if stages is not None:
            stages(line.removeprefix("stage "))

    returncode, stderr = await run_kept(argv, told)
    if returncode != 0:
        raise ImageError(
            f"the image {recipe} could not be built: {stderr or 'no reason given'}",
            argv=argv, returncode=returncode, stderr=stderr,
        )  # fmt: skip
