"""An image copied into the store: as it is where it can be, else converted."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qemuctl.errors import ImageError
from qemuctl.image.chain import check_trusted
from qemuctl.image.check import check
from qemuctl.image.convert import convert
from qemuctl.image.manifest import FILE, STEP, sha256_of
from qemuctl.image.model import Image
from qemuctl.image.overlay import check_format
from qemuctl.image.progress import Progress
from qemuctl.image.qcow2 import read_header
from qemuctl.image.recognise import check_raw
from qemuctl.thread import Tick, in_thread


def copy_beside(image: Image, folder: Path, tick: Tick) -> None:
    """Copies what lies beside an image's disk: its kernel and initrd."""
    for file in image.folder.iterdir():
        if file.name not in (FILE, getattr(image.disk, "name", "")):
            tick()
            shutil.copyfile(file, folder / file.name)


async def copied(
    path: Path,
    format: str,
    disk: Path,
    trust_backing: bool,
    progress: Progress,
    inside: Sequence[Path] = (),
) -> str:
    """Copies an image, flattened, and gives the copy's SHA-256; its backing files may
    be ``inside`` of these folders."""
    if format in ("qcow2", "raw"):
        check_format(path, "raw" if format == "raw" else "qcow2")
        if format == "raw":
            check_raw(path)
        layers = check_trusted(path, format, inside=inside, trust_backing=trust_backing)
        single = len(layers) == 1 and layers[0].remote is None
        if format == "qcow2" and single and read_header(path).data_file is None:
            # As it is, for compressed clusters would be unpacked otherwise.
            await _check_sound(path)
            return await in_thread(partial(copy_file, path, disk, progress))
    await convert(
        path, disk, source_format=format, trust_backing=trust_backing,
        format=disk.suffix.removeprefix("."), progress=progress,
    )  # fmt: skip
    return await in_thread(partial(sha256_of, disk))


async def _check_sound(path: Path) -> None:
    found = await check(path, "qcow2")
    if found.corruptions or found.errors:
        raise ImageError(
            f"the image is damaged: {path}", hint=f"qemuctl image check {path}"
        )


def copy_file(source: Path, target: Path, progress: Progress, tick: Tick) -> str:
    """Copies a file, and gives its SHA-256. Raises ImageError."""
    digest = hashlib.sha256()
    total, done = source.stat().st_size, 0
    try:
        with source.open("rb") as reading, target.open("xb") as writing:
            while part := reading.read(STEP):
                tick()
                digest.update(part)
                writing.write(part)
                done += len(part)
                progress(done, total)
    except OSError as error:
        raise ImageError(
            f"cannot copy {source} to {target.parent}: {error.strerror}"
        ) from error
    return digest.hexdigest()
