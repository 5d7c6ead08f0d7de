"""The image store: images that VMs boot from, and none writes to.

::

    $XDG_DATA_HOME/qemuctl/images/NAME/
        image.yaml      what it is and where it came from
        disk.qcow2      or disk.raw; read-only, the backing file of many disks
        kernel, initrd  for an image that is booted without a boot loader

An image appears whole, by the rename of its folder, or not at all. The tiny
image has no disk that a VM's could depend on; it is built into the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from qemuctl import durable
from qemuctl.errors import ImageError, SpecError
from qemuctl.image.manifest import FILE, Manifest, read_manifest, write_manifest
from qemuctl.image.model import Image
from qemuctl.image.names import RECIPES, stored
from qemuctl.image.names import TINY as TINY
from qemuctl.paths import images_dir, private_dir
from qemuctl.process.working import all_idle, idle, making
from qemuctl.spec import validate_name
from qemuctl.waiting import lock_for_a_moment

names = stored


def find(name: str) -> Image:
    """The image of this name, in the store or tiny.

    Raises ImageError: for an unknown one with the nearest name, or with the
    command that gets it; for one whose description is damaged.
    """
    if name == TINY:
        from qemuctl.image.tiny_image import tiny

        return tiny()
    folder = folder_of(name)
    return Image(name, folder, read_manifest(folder / FILE))


def folder_of(name: str) -> Path:
    """The folder of an image in the store, also of a damaged one.

    Raises ImageError, as `find`, when there is none.
    """
    # What is no name might lead elsewhere, or be too long for a folder.
    try:
        folder = images_dir() / validate_name(name)
    except SpecError as error:
        raise unknown(name) from error
    if not folder.is_dir():
        raise unknown(name)
    return folder


def unknown(name: str) -> ImageError:
    """The error for an image that there is not, with what to do about it."""
    from qemuctl.image.catalog import catalog, near

    known = dict.fromkeys((*names(), TINY), "")
    with contextlib.suppress(SpecError):
        known |= {image: f"qemuctl image pull {image}" for image in catalog()}
    known |= {image: f"qemuctl image build {image}" for image in RECIPES}
    hint = f"get it with: {known[name]}" if name in known else near(name, known)
    return ImageError(
        f"no such image: {name}",
        hint=hint
        or "qemuctl image ls --available shows all; a path needs a slash: ./disk.qcow2",
    )


@contextlib.contextmanager
def fresh(name: str) -> Iterator[Path]:
    """A folder to put a new image's files into, which then becomes the image, and is
    on the disk: large files are best synced in the block, in a thread.

    Raises SpecError for a bad name, ImageError when there is such an image.
    """
    validate_name(name)
    check_free(name)
    with making(private_dir(images_dir()), f".new-{name}-") as folder:
        yield folder
        for file in folder.iterdir():
            file.chmod(0o444)
        try:
            durable.sync_tree(folder)
            # rename(2) refuses to replace a folder that is not empty.
            durable.move(folder, images_dir() / name)
        except OSError as error:
            check_free(name)
            raise ImageError(
                f"cannot add the image {name}: {error.strerror}"
            ) from error


def check_free(name: str) -> None:
    """Raises ImageError when there is an image of this name."""
    if name == TINY or (images_dir() / name).exists():
        raise ImageError(
            f"an image of this name exists already: {name}",
            hint=f"choose another one with --name, or qemuctl image rm {name}",
        )


def describe(folder: Path, manifest: Manifest) -> None:
    """Puts the description into the folder that `fresh` gave."""
    write_manifest(folder / FILE, manifest)


@contextlib.contextmanager
def steady(*, alone: bool = False) -> Iterator[None]:
    """While a VM's disks are made from images, none is removed.

    ``alone`` is for whoever removes. Raises ImageError when disks are being made
    just then: that may take long, and to wait would be to stand still.
    """
    path = private_dir(images_dir()) / ".lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            if alone:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                lock_for_a_moment(fd, str(path), shared=True)
        except BlockingIOError:
            raise ImageError(
                "another command is making a VM's disks from images",
                hint="try again when it is done",
            ) from None
        yield
    finally:
        os.close(fd)


def remove(name: str) -> None:
    """Removes an image, damaged or not; whether somebody needs it is for the
    caller to know, who finds that out in the same `steady` block.

    Raises ImageError when there is none.
    """
    folder = find(name).folder if name == TINY else folder_of(name)
    # Out of sight first: a removal that is cut short leaves no half image.
    doomed = folder.with_name(f".removed-{name}-{os.urandom(4).hex()}")
    with idle(folder):  # `gc` leaves it to us
        try:
            durable.move(folder, doomed)
        except FileNotFoundError as error:
            raise ImageError(f"no such image: {name}") from error
        shutil.rmtree(doomed)


def leftovers(folder: Path | None = None) -> list[Path]:
    """What crashes left in the store, or in the folder of tiny images: half-made
    and half-removed folders."""
    where = folder or images_dir()
    return all_idle(chain(where.glob(".new-*"), where.glob(".removed-*")))


def discard(folder: Path) -> bool:
    """Removes what `leftovers` found, unless somebody is at work there by now; says
    whether it has."""
    with idle(folder) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)
        return free
