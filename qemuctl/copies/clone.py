"""A second VM from one that is off.

A *full* clone has copies of all disks, flattened, and depends on nothing of
its source. A *linked* one shares what the source's disks hold now: that
becomes a file which nobody writes to, and both go on in overlays on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qemuctl.durable import sync_tree
from qemuctl.image.convert import convert
from qemuctl.image.overlay import create_overlay, freeze
from qemuctl.image.progress import Progress, silent
from qemuctl.paths import VmPaths, private_dir
from qemuctl.registry.disks.disk_files import (
    DiskFile,
    another_instance,
    disk_files,
    make_seed,
)
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.disks.unknown_drives import check_drives
from qemuctl.registry.mac_addresses import without_macs
from qemuctl.registry.offline import locked
from qemuctl.registry.states import Action, State
from qemuctl.registry.vms import creating
from qemuctl.spec import (
    Disk,
    Spec,
    load_spec,
    parse_spec,
    renamed,
    resolve_paths,
    validate_name,
)
from qemuctl.thread import Tick, in_thread


async def clone(
    source: str, target: str, *, linked: bool = False, progress: Progress = silent
) -> list[DiskFile]:
    """Makes the VM ``target`` from the VM ``source``; gives the disks copied whole.

    MAC addresses and host name are not taken over, and the seed is a new one,
    so that cloud-init gives the clone an identity of its own. Read-only disks and
    the CD are shared; a disk of the user's that is written to is copied, also
    for a linked clone, as are raw ones. ``progress`` is told of each copy.

    Raises NotFound, NameInUse, StateError when the source is on, ImageError.
    The new VM is there whole or not at all.
    """
    validate_name(target)
    with locked(source, Action.CLONE) as paths:
        spec = load_spec(paths.spec, name=source)
        check_drives(spec, Action.CLONE, State.OFF)
        image = image_of(spec)
        disks = disk_files(spec, paths, image)
        changed = _spec(spec, paths, target, disks)
        copied = []
        with creating(changed, _text(paths, spec, changed)) as fresh:
            for disk in disks:
                if disk.readonly and not disk.own:
                    continue
                if disk.awaited:
                    continue  # it is made by the clone's first start
                copy = private_dir(fresh.disks) / f"{disk.target}.{disk.format}"
                if linked and disk.own and disk.format == "qcow2":
                    await in_thread(partial(_link, disk.path, copy))
                else:
                    await _copy(disk, copy, spec, progress)
                    copied.append(disk)
            for file in own_boot_files(spec, paths).values():
                await in_thread(partial(_take, file, fresh.state))
            another_instance(fresh)
            await in_thread(lambda _: make_seed(changed, fresh, image))
            if paths.booted.exists():  # nothing is to be installed again
                fresh.booted.touch()
            await in_thread(partial(sync_tree, fresh.state))
    return copied


def _link(disk: Path, copy: Path, _: Tick) -> None:
    create_overlay(copy, freeze(disk), "qcow2")


def _take(file: Path, folder: Path, _: Tick) -> None:
    shutil.copy2(file, folder)


async def _copy(disk: DiskFile, copy: Path, spec: Spec, progress: Progress) -> None:
    await convert(
        disk.path, copy, source_format=disk.format, format=disk.format,
        progress=progress, trust_backing=spec.trust_backing,
    )  # fmt: skip


def _spec(spec: Spec, paths: VmPaths, name: str, disks: Sequence[DiskFile]) -> Spec:
    """The spec of the clone: another name, no fixed addresses, files of its own."""
    own: list[Disk] = []
    for disk, file in zip(
        spec.disks, disks[len(disks) - len(spec.disks) :], strict=True
    ):
        if disk.path is None or (file.readonly and not file.own):
            own.append(disk)
        else:
            path = f"disks/{file.target}.{file.format}"
            own.append(disk.model_copy(update={"path": path, "format": None}))
    boot = {key: file.name for key, file in own_boot_files(spec, paths).items()}
    cloud = spec.cloud_init and spec.cloud_init.model_copy(update={"hostname": None})
    return spec.model_copy(
        update={
            "name": name,
            "cloud_init": cloud,
            "disks": tuple(own),
            "nics": without_macs(spec).nics,
            "boot": spec.boot.model_copy(update=boot),
        }
    )


def own_boot_files(spec: Spec, paths: VmPaths) -> dict[str, Path]:
    """The kernel and initrd, by their keys, that lie in the VM's own folder."""
    files = {"kernel": spec.boot.kernel, "initrd": spec.boot.initrd}
    return {
        key: Path(name)
        for key, name in files.items()
        if name is not None and Path(name).parent == paths.state
    }


def _text(paths: VmPaths, spec: Spec, changed: Spec) -> str | None:
    """The source's text with the clone's name, if in the clone's folder, where
    its relative paths count from, it says what the clone's spec has to say."""
    text = renamed(paths.spec.read_text(), spec, changed.name)
    there = VmPaths.of(changed.name).state
    same = parse_spec(text, base=there) == resolve_paths(changed, there)
    return text if same else None
