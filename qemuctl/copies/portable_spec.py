"""The spec of a VM in an archive: complete in itself, and leading nowhere else."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qemuctl.image import Image, build_tiny
from qemuctl.image.store import TINY
from qemuctl.paths import VmPaths
from qemuctl.registry.disks.disk_files import DiskFile
from qemuctl.registry.disks.resolve import HOSTNAME, base_of, image_of, resolved, seeded
from qemuctl.spec import Boot, CloudInit, Disk, Spec

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
        update = {key: key if key in files else None for key in BOOT_FILES}
        if boot.cmdline is None and whole.cmdline is not None:
            # The VM may get another name there.
            words = whole.cmdline.split(" ")
            kept = (word for word in words if not word.startswith(HOSTNAME))
            update["cmdline"] = " ".join(kept)
        boot = whole.model_copy(update=update)
    if paths.booted.exists() or boot.once == "cdrom":
        # It was installed already, or the CD stays behind.
        boot = boot.model_copy(update={"once": None})
    return boot


def _cloud_init(spec: Spec, image: Image | None) -> CloudInit | None:
    """With whom the image has, and with the keys that are in files."""
    from qemuctl.image.own_files import given_keys

    if not seeded(spec, image):
        return spec.cloud_init
    cloud = spec.cloud_init or CloudInit()
    update: dict[str, object] = {"ssh_keys": tuple(given_keys(cloud.ssh_keys))}
    if image is not None and cloud.user_data is None:
        update["user"] = cloud.user or image.manifest.user
    return cloud.model_copy(update=update)
