"""The tiny guest: built into the cache on first use, from its recipe."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qemuctl.errors import HostError, ImageError
from qemuctl.image.qemu_img import check_readable
from qemuctl.paths import cache_home, private_dir

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """Something to boot: a kernel with its initrd and command line."""

    name: str
    folder: Path
    cmdline: str
    cmdline_microvm: str

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def built(self) -> bool:
        return self.folder.is_dir()


def recipes() -> Path:
    """The folder of recipes: inside an installed package, or beside a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_images"
    return installed if installed.is_dir() else package.parent / "images"


def tiny(kernel: Path | None = None, modules: Path | None = None) -> Image:
    """The tiny image, built or not; with a kernel of the user's, a variant of it.

    Its folder is named by a hash of all that goes into it, so that a changed
    recipe or kernel gives a new image and running VMs keep theirs.
    """
    recipe = recipes() / "tiny"
    digest = hashlib.sha256()
    for path in sorted(recipe.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(recipe).as_posix().encode())
            digest.update(path.read_bytes())
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
    folder = cache_home() / "images" / f"tiny-{digest.hexdigest()[:12]}"
    return Image(
        "tiny",
        folder,
        (recipe / "cmdline").read_text().strip(),
        (recipe / "cmdline.microvm").read_text().strip(),
    )


async def build_tiny(
    kernel: Path | None = None,
    modules: Path | None = None,
    *,
    progress: Progress | None = None,
) -> Image:
    """The tiny image, built if it is not there; ``progress`` gets its stages.

    Several processes that want it at once build it once. It appears whole or
    not at all. Raises ImageError with the recipe's own words.
    """
    image = tiny(kernel, modules)
    if image.built:
        return image
    images = private_dir(image.folder.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=images))
    try:
        await _build(image, kernel, modules, scratch, progress or (lambda _line: None))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return image


async def _build(
    image: Image,
    kernel: Path | None,
    modules: Path | None,
    scratch: Path,
    progress: Progress,
) -> None:
    flock = shutil.which("flock")
    if flock is None:
        raise HostError("flock is not installed", hint="it comes with util-linux")
    argv = [os.fspath(recipes() / "tiny" / "build"), os.fspath(scratch)]
    argv += ["--kernel", os.fspath(kernel)] if kernel else []
    argv += ["--modules", os.fspath(modules)] if modules else []
    # flock(1) waits for another builder without a thread of ours that nobody
    # could interrupt; whoever comes second finds the image and builds nothing.
    script = """[ -d "$1" ] && exit
        final=$1 scratch=$2; shift 2; "$@" && mv -- "$scratch" "$final" """
    lock = image.folder.parent / ".lock"
    process = await asyncio.create_subprocess_exec(
        flock, lock, "/bin/sh", "-c", script, "sh", image.folder, scratch, *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        reading = asyncio.create_task(process.stderr.read())
        async for line in process.stdout:
            progress(line.decode(errors="replace").strip().removeprefix("stage "))
        stderr = (await reading).decode(errors="replace").strip()
        returncode = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await asyncio.shield(process.wait())
        raise
    if returncode != 0:
        raise ImageError(
            f"the tiny image could not be built: {stderr or 'no reason given'}",
            argv=argv, returncode=returncode, stderr=stderr,
        )  # fmt: skip
