"""What a spec leaves open, filled in: its image, the files of its disks, the seed.

Disks have one numbering: ``disk0`` is what the image brings, if it brings a
disk, and those of the spec follow. The number is the device's id, its serial
in the guest, and the name of the file that qemuctl makes for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qemuctl import image as images
from qemuctl.errors import SpecError
from qemuctl.image.manifest import Format
from qemuctl.image.names import TINY
from qemuctl.image.qemu_img import check_readable
from qemuctl.paths import VmPaths
from qemuctl.spec import Boot, Disk, Forward, Memory, Nic, Spec
from qemuctl.spec.computer import USUAL_ORDER
from qemuctl.spec.disk import disk_ids
from qemuctl.structs import Struct
from qemuctl.units import format_size

if TYPE_CHECKING:  # many VMs have no image
    from qemuctl.image import Image

Device = Literal["disk", "cdrom", "network"]
SEED_SERIAL = "cidata"
_SSH = 22
_TSC_KHZ = "{tsc_khz}"
# What the tiny image's init takes for the guest's host name.
HOSTNAME = "qemuctl.hostname="


class Base(Struct, kw_only=False):
    """What the first disk of a VM is made from: nobody may write to it."""

    path: Path
    format: Format


def image_of(spec: Spec) -> Image | None:
    """The image that a spec names; None for a path, or no image at all.

    Raises ImageError for an unknown one.
    """
    if spec.image is None or spec.image_is_file:
        return None
    if spec.image == TINY:
        if spec.boot.initrd is not None:
            return None  # nothing of the image's is left to use
        return images.tiny(Path(spec.boot.kernel) if spec.boot.kernel else None)
    return images.store.find(spec.image)


def base_of(spec: Spec, image: Image | None) -> Base | None:
    """What the first disk is made from; None without an image that has one.

    Raises ImageError for a path to nothing, SpecError for one that does not name
    its format.
    """
    if image is not None:
        kind = image.manifest.format
        return Base(image.disk, kind) if image.disk and kind else None
    if spec.image is None or not spec.image_is_file:
        return None
    disk = Disk.model_construct(path=spec.image)
    if disk.by_suffix is None:
        check_readable(Path(spec.image), "the disk image")
        raise SpecError(
            f"the format of {spec.image!r} is not known: name it .qcow2 or .raw",
            key="image",
            hint="or bring it into the store: "
            "qemuctl image import FILE --format qcow2 --name NAME",
        )
    return Base(Path(spec.image).absolute(), disk.by_suffix)


def placed(spec: Spec, paths: VmPaths, image: Image | None) -> tuple[Disk, ...]:
    """All disks of a VM in their order, each with its id and its file's path.

    Raises SpecError for two of one id, and as `base_of` does.
    """
    disks = spec.disks
    if base_of(spec, image) is not None:
        disks = (Disk(path=str(paths.disk(0, "qcow2")), format="qcow2"), *disks)
    try:
        ids = disk_ids(disks)
    except ValueError as error:
        raise SpecError(str(error), key="disks") from error
    return tuple(
        disk.model_copy(
            update={
                "id": id_,
                "path": disk.path or str(paths.disk_file(id_, disk.driver)),
                "size": None,
            }
        )
        for id_, disk in zip(ids, disks, strict=True)
    )


def seeded(spec: Spec, image: Image | None) -> bool:
    """Whether the guest is told things at its first boot by a seed.

    Raises SpecError for a wish that the image cannot fulfil.
    """
    if spec.cloud_init is not None and spec.cloud_init.enabled:
        if spec.image == TINY and spec.boot.order is None:
            raise SpecError(
                "the image tiny has no cloud-init", key="cloud_init",
                hint="qemuctl image build debian makes one that has it",
            )  # fmt: skip
        return True
    if spec.cloud_init is not None:
        return False
    return image is not None and image.manifest.cloud_init


def resolved(
    spec: Spec,
    paths: VmPaths,
    image: Image | None,
    once: Device | None = None,
    tsc_khz: int | None = None,
) -> Spec:
    """The spec with all that an image brings written out, ready for `cmdline`.

    ``once`` is the kind of device that is tried first this time; ``tsc_khz`` what
    an emulated guest is told of its clock, on this host alone. Raises SpecError for
    less memory than the image boots with.
    """
    disks = placed(spec, paths, image)
    if once is not None:
        # Their own indexes would come before the order.
        disks = tuple(d.model_copy(update={"boot_index": None}) for d in disks)
    if seeded(spec, image):
        seed = Disk(
            path=str(paths.seed), format="raw", readonly=True, serial=SEED_SERIAL
        )
        # An id that no disk of a user's can have, wherever it stands.
        disks += (seed.model_copy(update={"id": SEED_SERIAL}),)
    return spec.model_copy(
        update={
            "boot": _boot(spec, image, once, tsc_khz),
            "memory": _memory(spec, image),
            "disks": disks,
            "nics": with_ssh(spec.nics) if seeded(spec, image) else spec.nics,
        }
    )


def _boot(
    spec: Spec, image: Image | None, once: Device | None, tsc_khz: int | None
) -> Boot:
    if once is not None:
        if once == "cdrom" and not spec.cdrom:
            raise SpecError("there is no CD to boot from", key="cdrom")
        usual = spec.boot.order or USUAL_ORDER
        order = (once, *(kind for kind in usual if kind != once))
        return Boot(order=order)
    own = spec.boot.kernel is not None and spec.image != TINY
    if image is None or image.kernel is None or own or spec.boot.order is not None:
        return spec.boot
    given = spec.boot.cmdline
    return Boot(
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        cmdline=_cmdline(spec, image, tsc_khz) if given is None else given,
    )


def _cmdline(spec: Spec, image: Image, tsc_khz: int | None) -> str | None:
    """The image's own kernel command line for the spec's machine."""
    template = image.manifest.cmdline
    if spec.chipset == "microvm":
        template = image.manifest.cmdline_microvm or template
    if template is None:
        return None
    if tsc_khz is None:  # then the kernel measures it
        template = " ".join(w for w in template.split(" ") if _TSC_KHZ not in w)
    if image.name == TINY:
        template += f" {HOSTNAME}{spec.name}"
    return template.replace(_TSC_KHZ, str(tsc_khz))


def _memory(spec: Spec, image: Image | None) -> Memory:
    least = image.manifest.memory if image is not None else None
    if least is None or spec.memory.size >= least:
        return spec.memory
    if "memory" in spec.model_fields_set:
        raise SpecError(
            f"too little for the image {spec.image}, which needs "
            f"{format_size(least)}: {format_size(spec.memory.size)}",
            key="memory",
        )
    return spec.memory.model_copy(update={"size": least})


def with_ssh(nics: Sequence[Nic]) -> tuple[Nic, ...]:
    """A way in for ssh, on a port that the kernel chooses, unless there is one."""
    ports = [forward.guest_port for nic in nics for forward in nic.forward]
    for index, nic in enumerate(nics):
        if nic.type == "user" and _SSH not in ports:
            forward = (*nic.forward, Forward(guest_port=_SSH))
            with_ssh = nic.model_copy(update={"forward": forward})
            return (*nics[:index], with_ssh, *nics[index + 1 :])
    return tuple(nics)
