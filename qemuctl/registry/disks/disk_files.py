"""The disks of a VM as files: made, checked, listed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl import durable
from qemuctl.errors import ImageError, SpecError
from qemuctl.image.chain import Layer, chain, check_trusted
from qemuctl.image.convert import convert
from qemuctl.image.files import resize
from qemuctl.image.iso import check_iso
from qemuctl.image.manifest import Format
from qemuctl.image.overlay import check_format, create_disk, create_overlay
from qemuctl.image.progress import Progress, silent
from qemuctl.image.qemu_img import check_readable
from qemuctl.image.recognise import check_no_image
from qemuctl.image.whole import whole
from qemuctl.paths import VmPaths, private_dir
from qemuctl.registry.disks.backing_trust import check_chain
from qemuctl.registry.disks.resolve import SEED_SERIAL, Base, base_of, placed, seeded
from qemuctl.registry.records.disk_ledger import check_not_lost, made_names, remember
from qemuctl.spec import Disk, Spec
from qemuctl.structs import Struct
from qemuctl.thread import Tick, in_thread
from qemuctl.units import format_size

if TYPE_CHECKING:  # many VMs have no image
    from qemuctl.image import Image

# The second line of an instance-id of which the user's own meta-data knows nothing.
_COPIED = "copied"


class DiskFile(Struct, kw_only=False):
    """One disk of a VM; sizes in bytes.

    ``target`` is the device's id, ``chain`` its file and those below it, from
    the top; it is empty where ``problem`` says why nothing can be told.
    ``own`` tells that qemuctl makes the file for this VM, ``awaited`` that the
    next start does so.
    """

    target: str
    serial: str
    path: Path
    format: Format
    readonly: bool
    own: bool
    awaited: bool
    chain: list[Layer]
    problem: str | None = None

    @property
    def size(self) -> int | None:
        """What the guest sees."""
        return self.chain[0].virtual_size if self.chain else None

    @property
    def used(self) -> int | None:
        """What the file takes on the host, without those below it."""
        return self.chain[0].used if self.chain else None


def disk_files(spec: Spec, paths: VmPaths, image: Image | None) -> list[DiskFile]:
    """The disks of a VM, those that are not made yet included."""
    return [
        _disk_file(disk, paths, trusted=spec.trust_backing)
        for disk in placed(spec, paths, image)
    ]


def _disk_file(disk: Disk, paths: VmPaths, *, trusted: bool) -> DiskFile:
    path = Path(disk.path or "")
    own = path.parent == paths.disks
    awaited = own and not path.exists() and path.name not in made_names(paths)
    layers: list[Layer] = []
    problem = None
    try:
        if awaited:
            problem = "not made yet"
        elif trusted:
            layers = check_trusted(path, disk.driver, inside=(), trust_backing=True)
        else:
            layers = chain(path, disk.driver)
    except ImageError as error:
        problem = error.message
    return DiskFile(
        target=disk.id or "",
        serial=disk.serial or disk.id or "",
        path=path,
        format=disk.driver,
        readonly=disk.readonly,
        own=own,
        awaited=awaited,
        chain=layers,
        problem=problem,
    )


async def make_disks(
    spec: Spec, paths: VmPaths, image: Image | None, *, progress: Progress = silent
) -> None:
    """Makes the disks of a VM that are not there yet, and its seed.

    Raises ImageError, also for one that was made and is lost, or SpecError; a disk
    that exists is never touched, and each is made whole or not at all.
    """
    sizes = [disk.size for disk in spec.disks]
    base = base_of(spec, image)
    if base is not None:
        sizes.insert(0, None)
    if base is not None or any(sizes):
        private_dir(paths.disks)
    for index, disk in enumerate(placed(spec, paths, image)):
        path, size = Path(disk.path or ""), sizes[index]
        if path.parent != paths.disks:
            continue
        if not path.exists():
            check_not_lost(path, paths)
            if base is not None and index == 0:
                await _make_root(path, base, spec, progress)
            elif size is not None:
                await in_thread(partial(_make_empty, path, disk.driver, size))
        remember(path, paths)
    if seeded(spec, image):
        await in_thread(lambda _: make_seed(spec, paths, image))


def _make_empty(path: Path, format: Format, size: int, _: Tick) -> None:
    create_disk(path, format, size)


async def _make_root(path: Path, base: Base, spec: Spec, progress: Progress) -> None:
    _check_base(base, spec)
    size = spec.root.size
    if spec.root.mode == "overlay":
        await in_thread(lambda _: create_overlay(path, base.path, base.format, size))
        return
    with whole(path) as fresh:
        await convert(
            base.path, fresh, source_format=base.format, format="qcow2",
            progress=progress, trust_backing=spec.trust_backing,
        )  # fmt: skip
        if size is not None:
            await resize(fresh, "qcow2", size)


def _check_base(base: Base, spec: Spec) -> None:
    check_format(base.path, base.format)
    layers = _check_trusted(base.path, base.format, spec)
    if spec.root.size is not None and spec.root.size < layers[0].virtual_size:
        raise SpecError(
            f"smaller than the image's own disk, which has "
            f"{format_size(layers[0].virtual_size)}: {format_size(spec.root.size)}",
            key="root.size",
        )


def _check_trusted(path: Path, format: Format, spec: Spec) -> list[Layer]:
    named = spec.image is not None and spec.image_is_file
    image = Path(spec.image or "") if named else None
    return check_chain(path, format, image=image, trust_backing=spec.trust_backing)


def another_instance(paths: VmPaths) -> None:
    """Has cloud-init in copied disks begin anew, and take nobody else's identity."""
    durable.write(paths.instance, f"{uuid.uuid4()}\n{_COPIED}\n")


def make_seed(spec: Spec, paths: VmPaths, image: Image | None) -> None:
    """Makes the seed of a VM that has one, again when the spec is another by now."""
    if not seeded(spec, image):
        return
    from qemuctl.image.keys import own_key
    from qemuctl.image.seed import write_seed

    written = _written_at(paths.spec)
    if written is not None and _written_at(paths.seed) == written:
        return
    if not paths.instance.exists():
        durable.write(paths.instance, f"{uuid.uuid4()}\n")
    instance, copied = _instance(paths)
    write_seed(
        paths.seed,
        name=spec.name,
        instance_id=instance,
        fresh_instance=copied,
        cloud_init=spec.cloud_init,
        default_user=image.manifest.user if image else None,
        keys=[own_key().public],
    )
    date_seed(paths, written)


def date_seed(paths: VmPaths, written: int | None = None) -> None:
    """Has a VM's seed count as made from its spec, or from one that was ``written`` at
    this time (nanoseconds since the epoch).

    It has the very time of that one. Which of two is newer would tell nothing: a clock
    may be set back.
    """
    written = written or _written_at(paths.spec)
    if written is not None:
        with contextlib.suppress(FileNotFoundError):  # not every VM has one
            os.utime(paths.seed, ns=(written, written))


def _written_at(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None


def _instance(paths: VmPaths) -> tuple[str, bool]:
    """The identity, and whether its disks are copies. Raises DamagedFile: with another
    one cloud-init takes the guest for a new machine, and makes its keys anew."""
    path = paths.instance
    hint = "put it back; or, to have cloud-init set the guest up anew: "
    with durable.understood(path, f"{hint}rm {shlex.quote(str(path))}"):
        instance, *copied = path.read_text(encoding="utf-8").split()
        return instance, bool(copied)


def check_files(spec: Spec) -> None:
    """Raises ImageError, naming what bars the way, for files that QEMU will open.

    ``spec`` is resolved.
    """
    check_media(spec)
    for name, what in (
        (spec.boot.kernel, "the kernel"),
        (spec.boot.initrd, "the initrd"),
    ):
        if name:
            check_readable(Path(name), what)


def check_media(spec: Spec) -> None:
    """As `check_files`, for disks and CD: a tiny image's kernel may be built yet."""
    _check_once_each(spec.disks)
    for disk in spec.disks:
        check_medium(disk, spec)
    if spec.cdrom:
        check_iso(Path(spec.cdrom))


def check_medium(disk: Disk, spec: Spec) -> None:
    """Raises ImageError when a resolved disk's file cannot be read, is not of its
    format, or has files below it that the spec does not trust."""
    path = Path(disk.path or "")
    check_format(path, disk.driver)
    if disk.serial != SEED_SERIAL and disk.driver != "raw":
        _check_trusted(path, disk.driver, spec)


def check_new_medium(disk: Disk, spec: Spec) -> None:
    """As `check_medium`, for a disk that a VM gets now: later its guest may write to a
    raw one what it likes."""
    check_medium(disk, spec)
    if disk.driver == "raw":
        check_no_image(Path(disk.path or ""))


def _check_once_each(disks: Sequence[Disk]) -> None:
    """Raises SpecError when one file is two disks, and one of these is written to."""
    for (first, one), (second, other) in itertools.combinations(enumerate(disks), 2):
        if one.readonly and other.readonly:
            continue
        with contextlib.suppress(FileNotFoundError):
            if Path(one.path or "").samefile(other.path or ""):
                raise SpecError(
                    f"disk{first} and disk{second} have one file: {other.path}",
                    key="disks",
                )


def check_disks_kept(
    before: Spec, after: Spec, paths: VmPaths, images: tuple[Image | None, Image | None]
) -> None:
    """Raises SpecError when a change would give a disk's file to another disk.

    The files are named by their place among the disks.
    """
    old, new = (
        _sources(spec, paths, image)
        for spec, image in zip((before, after), images, strict=True)
    )
    for path, made in old.items():
        if path.exists() and new.get(path) != made:
            raise SpecError(
                "this disk exists; its place, size and format cannot change here",
                key=made.key,
                hint=f"its file: {path}",
            )


class _Made(Struct, kw_only=False):
    """What a file of the VM's own was made from, and the key that says so."""

    key: str
    source: tuple[object, ...]


def _sources(spec: Spec, paths: VmPaths, image: Image | None) -> dict[Path, _Made]:
    base = base_of(spec, image)
    made = {}
    if base is not None:
        made[paths.disk(0, "qcow2")] = _Made("image", (spec.image, spec.root))
    for index, disk in enumerate(spec.disks):
        key, path = f"disks[{index}]", Path(disk.path or "")
        if disk.size is not None:
            id_ = disk.id or f"disk{index + (base is not None)}"
            path = paths.disk_file(id_, disk.driver)
            made[path] = _Made(key, (disk.size,))
        elif path.parent == paths.disks:
            made[path] = _Made(key, (disk.driver,))
    return made
