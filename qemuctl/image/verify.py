"""Is an image in the store still what came into it?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qemuctl.errors import ImageError, SpecError
from qemuctl.image.manifest import STEP, sha256_of
from qemuctl.image.model import Image
from qemuctl.image.progress import Progress, silent
from qemuctl.image.qemu_img import check_readable
from qemuctl.thread import Tick, in_thread


async def verify(image: Image, *, progress: Progress = silent) -> None:
    """Raises ImageError unless an image's disk, and the kernel and others beside it
    whose checksums are known, are still what came into the store."""
    disk, known = image.disk, image.manifest.sha256
    if disk is None or known is None:
        raise SpecError(f"there is no checksum of the image {image.name}")
    sums = {disk.name: known} | image.manifest.files
    for name in sums:
        check_readable(image.folder / name, f"the image's {name}")
    total = sum((image.folder / name).stat().st_size for name in sums)
    done = 0

    def hashed(path: Path, tick: Tick) -> str:
        def ticked() -> None:
            nonlocal done
            tick()
            done += STEP
            progress(min(done, total), total)

        return sha256_of(path, ticked)

    for name, expected in sums.items():
        path = image.folder / name
        found = await in_thread(partial(hashed, path))
        if found != expected:
            raise ImageError(
                f"the image {image.name} has changed: wrong sha256 checksum of {path}: "
                f"expected {expected}, got {found}",
                hint="VMs that were made from it cannot be trusted any more; "
                f"qemuctl image rm {image.name}, then get it again",
            )
