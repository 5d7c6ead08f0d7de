"""What the user writes: one frozen model, every field with a default but `name`.

Its parts are in `computer`, `disk`, `network` and `cloud`. Nothing here knows about
processes, paths of a VM, or the host. Field names are QEMU's where QEMU has one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from qemuctl.spec.arguments import check_arguments, taken_ids
from qemuctl.spec.base import Model
from qemuctl.spec.cloud import CloudInit
from qemuctl.spec.computer import Boot, Cpu, Display, Memory, Root
from qemuctl.spec.disk import Disk
from qemuctl.spec.network import Nic
from qemuctl.spec.scalars import Argument, Text, check_name
from qemuctl.spec.unique import check_unique
from qemuctl.typed.marks import Check, setting

_MACHINE = re.compile(
    r"q35|pc|microvm|pc-(?:q35|i440fx)-[0-9]{1,3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?"
)


def _check_machine(value: str) -> str:
    if not _MACHINE.fullmatch(value):
        raise ValueError(
            f"not a machine: {value!r} "
            "(q35, pc, microvm, or a version such as pc-q35-7.2)"
        )
    return value


def _check_extra_args(value: tuple[str, ...], fields: Mapping[str, Any]) -> None:
    boot = fields.get("boot", Boot())
    linux = boot.initrd is not None or fields.get("image") is not None
    modules = boot.kernel is not None and not linux
    check_arguments(value, taken_ids(fields), modules=modules)


def _check_disks(value: tuple[Disk, ...]) -> tuple[Disk, ...]:
    written = Counter(disk.path for disk in value if not disk.readonly)
    for disk in value:
        # QEMU locks an image against a second writer, in words about locks.
        if disk.path and written[disk.path] + disk.readonly > 1:
            raise ValueError(f"a disk that is written is used twice: {disk.path}")
    check_unique("two disks have the same boot_index", (d.boot_index for d in value))
    check_unique("two disks have the same id", (disk.id for disk in value))
    return value


def _check_nics(value: tuple[Nic, ...]) -> tuple[Nic, ...]:
    check_unique("two cards have the same mac", (nic.mac for nic in value))
    check_unique("two cards have the same id", (nic.id for nic in value))
    check_unique(
        "two forwards have the same host port",
        (
            f"{forward.protocol}:{forward.address}:{forward.host_port}"
            for nic in value
            for forward in nic.forward
            if forward.host_port
        ),
    )
    return value


class Spec(Model):
    """One VM, as its user wants it."""

    name: Annotated[str, Check(check_name)]
    image: Text | None = None
    arch: Literal["x86_64"] = "x86_64"
    machine: Annotated[str, Check(_check_machine)] = setting(
        default="q35", description="q35, pc, microvm, or a versioned one"
    )
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    firmware: Literal["bios"] = "bios"
    boot: Boot = Boot()
    root: Root = Root()
    disks: Annotated[tuple[Disk, ...], Check(_check_disks)] = ()
    cdrom: Argument | None = setting(
        default=None, description="an image; empty: a drive without a medium"
    )
    trust_backing: bool = setting(
        default=False, description="follow backing files wherever disk images name them"
    )
    cloud_init: CloudInit | None = None
    nics: Annotated[tuple[Nic, ...], Check(_check_nics)] = (Nic(),)
    serial: bool = True
    display: Display = Display()
    agent: bool = True
    rng: bool = True
    balloon: bool = True
    sandbox: bool = True
    on_panic: Literal["none", "pause", "shutdown", "exit-failure"] = "exit-failure"
    on_guest_reboot: Literal["reset", "shutdown"] = "reset"
    hotplug_ports: int = setting(
        default=4,
        ge=0,
        le=32,
        description="devices that can be plugged in while it runs (q35)",
    )
    extra_args: tuple[Argument, ...] = setting(default=(), check=_check_extra_args)
    qemu: Text | None = setting(default=None, description="path of another QEMU binary")

    @property
    def image_is_file(self) -> bool:
        """Whether `image` is a disk image's path, not the name of an image."""
        image = self.image or ""
        return "/" in image or image.endswith((".qcow2", ".raw"))

    @property
    def chipset(self) -> Literal["q35", "pc", "microvm"]:
        """The family that the machine type belongs to."""
        if self.machine == "microvm":
            return "microvm"
        return "q35" if "q35" in self.machine else "pc"
