"""From which image a VM's disk comes: what is beside the image's disk goes with it."""

from __future__ import annotations

from pathlib import Path

from qemuctl.errors import QemuctlError
from qemuctl.image import Image
from qemuctl.paths import VmPaths, vms_dir
from qemuctl.registry.disks.resolve import image_of
from qemuctl.registry.vms import load


def origin_of(path: Path) -> Image | None:
    """The image whose kernel boots from a file that is a VM's root disk; None for any
    other file, for an image with a boot loader in its disk, and for one that is lost.
    """
    vm = path.resolve().parent.parent
    if vm.parent != vms_dir().resolve():
        return None
    own = VmPaths.of(vm.name)
    if not own.spec.is_file() or path.resolve() != own.disk(0, "qcow2").resolve():
        return None
    try:
        image = image_of(load(vm.name))
    except QemuctlError:
        return None
    has_kernel = image is not None and image.kernel is not None
    return image if has_kernel and image is not None and image.disk else None
