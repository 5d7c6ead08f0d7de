"""A template made from a VM that there is: its spec, and copies of its disks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from qemuctl.image.convert import convert
from qemuctl.image.progress import Progress, silent
from qemuctl.paths import VmPaths, private_dir
from qemuctl.registry.disks.disk_files import DiskFile, another_instance, disk_files
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.mac_addresses import without_macs
from qemuctl.registry.offline import locked
from qemuctl.registry.records.disk_ledger import remember
from qemuctl.registry.states import Action
from qemuctl.spec import Disk, Spec, load_spec
from qemuctl.templates.catalog import Making
from qemuctl.templates.eligible import check_forkable
from qemuctl.templates.key import Recipe


@contextlib.asynccontextmanager
async def made_of_vm(
    name: str, recipe: Recipe, *, timeout: float, progress: Progress = silent
) -> AsyncIterator[Making]:
    """What makes a template of a VM, which is off and stays so for the block.

    ``progress`` is told of each disk that is copied. Raises NotFound, StateError
    when it is on, SpecError for what cannot be combined with a template.
    """
    with locked(name, Action.CLONE) as paths:
        spec = load_spec(paths.spec, name=name)
        disks = disk_files(spec, paths, image_of(spec))
        changed = _spec(spec, disks)
        check_forkable(changed)

        async def furnish(fresh: VmPaths) -> None:
            for disk in filter(_is_copied, disks):
                copy = private_dir(fresh.disks) / f"{disk.target}.qcow2"
                await convert(
                    disk.path, copy, source_format=disk.format, format="qcow2",
                    progress=progress, trust_backing=spec.trust_backing,
                )  # fmt: skip
                remember(copy, fresh)
            another_instance(fresh)

        yield Making(
            spec=changed,
            recipe=recipe,
            source=f"the VM {name}",
            furnish=furnish,
            timeout=timeout,
        )


def _is_copied(disk: DiskFile) -> bool:
    return not disk.awaited and (disk.own or not disk.readonly)


def _spec(spec: Spec, disks: list[DiskFile]) -> Spec:
    """The VM's spec with disks of the template's own, and without its addresses."""
    files = disks[len(disks) - len(spec.disks) :]
    given = zip(spec.disks, files, strict=True)
    return spec.model_copy(
        update={
            "disks": tuple(_disk(disk, file) for disk, file in given),
            "nics": without_macs(spec).nics,
        }
    )


def _disk(disk: Disk, file: DiskFile) -> Disk:
    if disk.path is None or not _is_copied(file):
        return disk
    own = {"path": None, "size": file.size, "format": "qcow2", "id": file.target}
    return disk.model_copy(update=own)
