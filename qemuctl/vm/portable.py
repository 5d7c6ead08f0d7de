"""The spec of a VM in an archive: complete in itself, and leading nowhere else."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qemuctl.errors import SpecError
from qemuctl.image import Image, build_tiny
from qemuctl.image.store import TINY
from qemuctl.paths import VmPaths
from qemuctl.spec import Boot, CloudInit, Disk, Spec
from qemuctl.spec.cloud import key_is_path
from qemuctl.vm.disks import DiskFile
from qemuctl.vm.resolve import base_of, image_of, resolved, seeded

BOOT_FILES = ("kernel", "initrd")


async def image_to_go(spec: Spec) -> Image | None:
    """The image of a spec, with its files there if they have to come along."""
    image = image_of(spec)
    if image is None or image.present or is_everywhere(spec, image):
        return image
    return await build_tiny(Path(spec.boot.kernel) if spec.boot.kernel else None)


def is_everywhere(spec: Spec, image: Image | None) -> bool:
    """Whether the image is just tiny, which every host can build."""
    return image is not None and image.name == TINY and spec.boot.kernel is None


def disk_name(disk: DiskFile) -> str:
    """What a disk is called in the archive."""
    return f"disks/{disk.target}.qcow2"


def made(spec: Spec, disks: list[DiskFile]) -> list[DiskFile]:
    """The disks to take along: a new one that was not made yet is made there."""
    sizes = [None] * (len(disks) - len(spec.disks)) + [d.size for d in spec.disks]
    return [
        disk
        for disk, size in zip(disks, sizes, strict=True)
        if size is None or not disk.awaited
    ]


def boot_files(spec: Spec, paths: VmPaths, image: Image | None) -> dict[str, Path]:
    """The kernel and initrd that the archive has to bring."""
    if is_everywhere(spec, image):
        return {}
    boot = resolved(spec, paths, image).boot
    files = {key: getattr(boot, key) for key in BOOT_FILES}
    return {key: Path(path) for key, path in files.items() if path is not None}


def portable(
    spec: Spec, paths: VmPaths, image: Image | None, disks: list[DiskFile]
) -> Spec:
    """The spec with every file it needs named inside of the archive.

    Raises SpecError for a public key's file that cannot be read.
    """
    whole = resolved(spec, paths, image)
    taken = made(spec, disks)
    first = [Disk(path="-", format="qcow2")] * (len(disks) - len(spec.disks))
    own = [
        disk.model_copy(
            update={"path": disk_name(file), "size": None, "format": None}
            if file in taken
            else {}
        )
        for disk, file in zip([*first, *spec.disks], disks, strict=True)
    ]
    update: dict[str, object] = {
        "disks": tuple(own),
        "cdrom": "" if spec.cdrom else spec.cdrom,
        "trust_backing": False,  # there is nothing below these disks
        "boot": _boot(spec, whole.boot, paths, boot_files(spec, paths, image)),
        "cloud_init": _cloud_init(spec, image),
    }
    if not is_everywhere(spec, image):
        update |= {"image": None, "root": type(spec.root)(), "memory": whole.memory}
    return spec.model_copy(update=update)


def without_image(spec: Spec, paths: VmPaths, image: Image | None) -> Spec:
    """The spec for a place where its image is not; the disk that the image has
    brought is its first, and kernel and initrd lie beside. Raises as `portable`."""
    whole = resolved(spec, paths, image)
    first = [Disk(id="disk0", path="disks/disk0.qcow2", format="qcow2")]
    update = {
        "image": None,
        "root": type(spec.root)(),
        "memory": whole.memory,
        "disks": (*(first if base_of(spec, image) else []), *spec.disks),
        "boot": _boot(spec, whole.boot, paths, boot_files(spec, paths, image)),
        "cloud_init": _cloud_init(spec, image),
    }
    return spec.model_copy(update=update)


def _boot(spec: Spec, whole: Boot, paths: VmPaths, files: Collection[str]) -> Boot:
    boot = spec.boot
    if files:
        names = {key: key if key in files else None for key in BOOT_FILES}
        boot = whole.model_copy(update=names)
    if paths.booted.exists() or boot.once == "cdrom":
        # It was installed already, or the CD stays behind.
        boot = boot.model_copy(update={"once": None})
    return boot


def _cloud_init(spec: Spec, image: Image | None) -> CloudInit | None:
    """With whom the image has, and with the keys that are in files."""
    from qemuctl.image.seed import given_keys

    if not seeded(spec, image):
        return spec.cloud_init
    cloud = spec.cloud_init or CloudInit()
    update: dict[str, object] = {"ssh_keys": tuple(given_keys(cloud.ssh_keys))}
    if image is not None and cloud.user_data is None:
        update["user"] = cloud.user or image.manifest.user
    return cloud.model_copy(update=update)


def check_inside(spec: Spec, names: Collection[str], source: Path) -> None:
    """Raises SpecError for a spec out of the archive ``source`` that has QEMU open
    more than the VM's own files, of which the archive has these ``names``."""
    disks = {name for name in names if name.startswith("disks/")}
    outside = {
        "extra_args": spec.extra_args,
        "qemu": spec.qemu,
        "cdrom": spec.cdrom,
        "image": spec.image if spec.image != TINY else None,
        "trust_backing": spec.trust_backing,
        "sandbox": not spec.sandbox,
        "nics": [nic for nic in spec.nics if nic.type in ("tap", "socket")],
        "forward": [
            forward
            for nic in spec.nics
            for forward in nic.forward
            if forward.address != "127.0.0.1"
        ],
        "display.address": spec.display.address,
        "boot": [
            key
            for key in BOOT_FILES
            if getattr(spec.boot, key) not in (None, *BOOT_FILES)
        ],
        # No other file: the spec itself, written to by a guest, would be obeyed.
        "disks": [disk for disk in spec.disks if disk.path not in (None, *disks)],
        "cloud_init": _cloud_files(spec.cloud_init),
    }
    for key, value in outside.items():
        if value:
            raise SpecError(
                "leads outside of the VM", path=str(source), key=key,
                hint="if you trust where the file comes from, add --trust",
            )  # fmt: skip


def _cloud_files(cloud: CloudInit | None) -> list[str]:
    if cloud is None:
        return []
    fields = ("user_data", "meta_data", "network_config")
    files = [name for name in fields if getattr(cloud, name) is not None]
    return files + [key for key in cloud.ssh_keys if key_is_path(key)]
