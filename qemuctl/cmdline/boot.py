"""What the guest boots: a kernel of our own, or devices in an order."""

from __future__ import annotations

from collections.abc import Iterator

from qemuctl.cmdline.keyval import Plain
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.options import BootOption
from qemuctl.cmdline.storage import CDROM
from qemuctl.spec.computer import USUAL_ORDER
from qemuctl.spec.disk import disk_ids
from qemuctl.spec.model import Spec
from qemuctl.spec.network import nic_ids

DEFAULT_CMDLINE = "console=ttyS0"


def boot(spec: Spec) -> Iterator[Element]:
    """``-kernel``, ``-initrd`` and ``-append``, or a strict boot order."""
    if spec.boot.kernel is None:
        if spec.boot.order is not None:
            # Otherwise the firmware goes on to devices that were left out.
            yield BootOption(strict=True)
        return
    yield Plain(option="-kernel", value=spec.boot.kernel)
    if spec.boot.initrd is not None:
        yield Plain(option="-initrd", value=spec.boot.initrd)
    cmdline = spec.boot.cmdline
    if cmdline is None:
        cmdline = DEFAULT_CMDLINE if spec.serial else ""
    yield Plain(option="-append", value=cmdline)


def boot_indexes(spec: Spec) -> dict[str, int]:
    """The boot index of each device, by its id.

    A disk's own index wins; the others follow in `boot.order`, or else disks
    before the CD-ROM.
    """
    # The kernel itself takes index 0, and whatever comes after is never tried.
    if spec.boot.kernel is not None:
        return {}
    indexes = {
        id_: disk.boot_index
        for id_, disk in zip(disk_ids(spec.disks), spec.disks, strict=True)
        if disk.boot_index is not None
    }
    following = max(indexes.values(), default=-1) + 1
    for kind in spec.boot.order or USUAL_ORDER:
        for id_ in _of_kind(spec, kind):
            if id_ not in indexes:
                indexes[id_] = following
                following += 1
    return indexes


def _of_kind(spec: Spec, kind: str) -> list[str]:
    if kind == "disk":
        return disk_ids(spec.disks)
    if kind == "cdrom":
        return [CDROM] if spec.cdrom is not None else []
    cards = zip(nic_ids(spec.nics), spec.nics, strict=True)
    return [id_ for id_, nic in cards if nic.type != "none"]
