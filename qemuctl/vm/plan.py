"""From a spec to all that a start needs: image, disks, host, command line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from qemuctl import cmdline
from qemuctl.cmdline import Machine
from qemuctl.errors import ImageError, SpecError
from qemuctl.host import Host, find_qemu, inspect_host
from qemuctl.host.resources import tsc_khz
from qemuctl.image import Image, build_tiny, tiny
from qemuctl.image.overlay import Format, check_format, create_disk, create_overlay
from qemuctl.image.qemu_img import check_readable
from qemuctl.paths import VmPaths, private_dir
from qemuctl.spec import Boot, Disk, Spec

Progress = Callable[[str], None]
IMAGES = ("tiny",)


@dataclass(frozen=True)
class Plan:
    """A resolved spec and the machine that it makes on this host."""

    spec: Spec
    paths: VmPaths
    host: Host
    machine: Machine

    def argv(self, sockets: dict[Path, int] | None = None) -> list[str]:
        """QEMU's arguments; without ``sockets`` the line that can be pasted."""
        return cmdline.argv(self.machine, sockets=sockets, paused=sockets is not None)


def draft(spec: Spec, paths: VmPaths) -> Plan:
    """The plan of a VM without making or changing anything.

    Raises SpecError, HostError or ImageError as a start would.
    """
    image = tiny_of(spec)
    return _plan(_with_image(spec, paths, image), paths)


async def prepare(
    spec: Spec, paths: VmPaths, *, progress: Progress | None = None
) -> Plan:
    """The plan of a VM, with its image built and its disks made.

    Raises SpecError, HostError or ImageError; what was made for the VM lies
    in its own folder.
    """
    image = tiny_of(spec)
    find_qemu(spec)  # before anything slow
    if image is not None and not image.built:
        kernel = Path(spec.boot.kernel) if spec.boot.kernel else None
        image = await build_tiny(kernel, progress=progress)
    # qemu-img takes its time, and other VMs of this process must go on.
    await asyncio.to_thread(make_disks, spec, paths)
    resolved = _with_image(spec, paths, image)
    _check_files(resolved)
    return _plan(resolved, paths)


def _plan(spec: Spec, paths: VmPaths) -> Plan:
    paths.check_sockets()
    host = inspect_host(spec)
    return Plan(spec, paths, host, cmdline.build(spec, paths, host))


def tiny_of(spec: Spec) -> Image | None:
    """The tiny image, if that is what the spec boots.

    Raises ImageError for an image that there is not.
    """
    if spec.image is None or _is_file(spec.image):
        return None
    if spec.image not in IMAGES:
        close = get_close_matches(spec.image, IMAGES, 1)
        raise ImageError(
            f"no such image: {spec.image}",
            hint=f"did you mean {close[0]}?"
            if close
            else "images: tiny, or the path of a disk image such as ./debian.qcow2",
        )
    if spec.boot.initrd is not None:
        return None  # kernel and initrd of the user's own
    return tiny(Path(spec.boot.kernel) if spec.boot.kernel else None)


def _is_file(image: str) -> bool:
    return "/" in image or image.endswith((".qcow2", ".raw"))


def _with_image(spec: Spec, paths: VmPaths, image: Image | None) -> Spec:
    """The spec with what its image brings written out."""
    if image is not None:
        boot = Boot(
            kernel=str(image.kernel),
            initrd=str(image.initrd),
            cmdline=spec.boot.cmdline or _cmdline(spec, image),
            order=spec.boot.order,
        )
        return spec.model_copy(update={"boot": boot})
    if spec.image is not None and _is_file(spec.image):
        root = Disk(path=str(_root_disk(paths)), format="qcow2")
        return spec.model_copy(update={"disks": (root, *_placed(spec, paths))})
    return spec


def _cmdline(spec: Spec, image: Image) -> str:
    """The image's own kernel command line for the spec's machine."""
    if spec.chipset != "microvm":
        return image.cmdline
    return image.cmdline_microvm.format(tsc_khz=tsc_khz())


def _placed(spec: Spec, paths: VmPaths) -> tuple[Disk, ...]:
    """The disks with their files named: a root disk before them must not
    change which file is whose."""
    return tuple(
        disk.model_copy(update={"path": str(paths.disk(i, disk.driver)), "size": None})
        if disk.path is None
        else disk
        for i, disk in enumerate(spec.disks)
    )


def _root_disk(paths: VmPaths) -> Path:
    return paths.disks / "root.qcow2"


def make_disks(spec: Spec, paths: VmPaths) -> None:
    """Makes the disks of a VM that are not there yet.

    Raises ImageError; a disk that exists is never touched.
    """
    root = spec.image if spec.image is not None and _is_file(spec.image) else None
    sized = [(i, disk) for i, disk in enumerate(spec.disks) if disk.size is not None]
    if sized or root:
        private_dir(paths.disks)
    if root and not _root_disk(paths).exists():
        create_overlay(_root_disk(paths), Path(root).absolute(), _format_of(root))
    for index, disk in sized:
        path = paths.disk(index, disk.driver)
        if not path.exists():
            create_disk(path, disk.driver, disk.size or 0)


def check_disks_kept(before: Spec, after: Spec, paths: VmPaths) -> None:
    """Raises SpecError when a change would give a disk's file to another disk.

    The files of new disks are named by their place in the list.
    """
    for index, disk in enumerate(before.disks):
        if disk.size is None or not paths.disk(index, disk.driver).exists():
            continue
        now = after.disks[index] if index < len(after.disks) else None
        if now is None or (now.size, now.driver) != (disk.size, disk.driver):
            raise SpecError(
                "this disk exists; its place, size and format cannot change here",
                key=f"disks[{index}]",
                hint=f"its file: {paths.disk(index, disk.driver)}",
            )


def _format_of(image: str) -> Format:
    if image.endswith(".qcow2"):
        return "qcow2"
    if image.endswith(".raw"):
        return "raw"
    raise SpecError(
        f"the format of {image!r} is not known: name it .qcow2 or .raw", key="image"
    )


def _check_files(spec: Spec) -> None:
    """Raises ImageError, naming what bars the way, for files that QEMU will open."""
    for disk in spec.disks:
        if disk.path is not None:
            check_format(Path(disk.path), disk.driver)
    for path, what in (
        (spec.cdrom, "the CD image"),
        (spec.boot.kernel, "the kernel"),
        (spec.boot.initrd, "the initrd"),
    ):
        if path is not None:
            check_readable(Path(path), what)
