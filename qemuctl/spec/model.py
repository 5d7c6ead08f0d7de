"""What the user writes: one frozen model, every field with a default but `name`.

Its parts are in `computer`, `disk`, `network` and `cloud`. Nothing here knows about
processes, paths of a VM, or the host. Field names are QEMU's where QEMU has one.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from qemuctl.spec.arguments import check_arguments, taken_ids
from qemuctl.spec.base import Model
from qemuctl.spec.cloud import CloudInit
from qemuctl.spec.computer import Boot, Cpu, Display, Memory, Root
from qemuctl.spec.disk import Disk
from qemuctl.spec.network import Nic
from qemuctl.spec.scalars import Argument, Text, Whole, check_name
from qemuctl.spec.unique import check_unique

_MACHINE = re.compile(
    r"q35|pc|microvm|pc-(?:q35|i440fx)-[0-9]{1,3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?"
)


def _short(field: str) -> BeforeValidator:
    """Lets a plain value stand for a part: ``memory: 1G`` for its `size`."""

    def widen(value: Any) -> Any:
        whole = value is None or isinstance(value, (dict, Model))
        return value if whole else {field: value}

    return BeforeValidator(widen)


class Spec(Model):
    """One VM, as its user wants it."""

    name: str
    image: Text | None = None
    arch: Literal["x86_64"] = "x86_64"
    machine: str = Field("q35", description="q35, pc, microvm, or a versioned one")
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    cpu: Annotated[Cpu, _short("count")] = Cpu.model_construct()
    memory: Annotated[Memory, _short("size")] = Memory.model_construct()
    firmware: Literal["bios"] = "bios"
    boot: Boot = Boot.model_construct()
    root: Annotated[Root, _short("size")] = Root.model_construct()
    disks: tuple[Disk, ...] = ()
    cdrom: Text | Literal[""] | None = Field(
        None, description="an image; empty: a drive without a medium"
    )
    trust_backing: bool = Field(
        False, description="follow backing files wherever disk images name them"
    )
    cloud_init: Annotated[CloudInit | None, _short("enabled")] = None
    nics: tuple[Annotated[Nic, _short("type")], ...] = (Nic.model_construct(),)
    serial: bool = True
    display: Annotated[Display, _short("type")] = Display.model_construct()
    agent: bool = True
    rng: bool = True
    balloon: bool = True
    sandbox: bool = True
    on_panic: Literal["none", "pause", "shutdown", "exit-failure"] = "exit-failure"
    on_guest_reboot: Literal["reset", "shutdown"] = "reset"
    hotplug_ports: Whole = Field(
        4, ge=0, le=32, description="devices that can be plugged in while it runs (q35)"
    )
    extra_args: tuple[Argument, ...] = ()
    qemu: Text | None = Field(None, description="path of another QEMU binary")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("machine")
    @classmethod
    def _machine(cls, value: str) -> str:
        if not _MACHINE.fullmatch(value):
            raise ValueError(
                f"not a machine: {value!r} "
                "(q35, pc, microvm, or a version such as pc-q35-7.2)"
            )
        return value

    @field_validator("extra_args")
    @classmethod
    def _extra_args(
        cls, value: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        boot = info.data.get("boot", Boot())
        linux = boot.initrd is not None or info.data.get("image") is not None
        modules = boot.kernel is not None and not linux
        check_arguments(value, taken_ids(info.data), modules=modules)
        return value

    @field_validator("disks")
    @classmethod
    def _disks(cls, value: tuple[Disk, ...]) -> tuple[Disk, ...]:
        written = Counter(disk.path for disk in value if not disk.readonly)
        for disk in value:
            # QEMU locks an image against a second writer, in words about locks.
            if disk.path and written[disk.path] + disk.readonly > 1:
                raise ValueError(f"a disk that is written is used twice: {disk.path}")
        check_unique(
            "two disks have the same boot_index", (d.boot_index for d in value)
        )
        check_unique("two disks have the same id", (disk.id for disk in value))
        return value

    @field_validator("nics")
    @classmethod
    def _nics(cls, value: tuple[Nic, ...]) -> tuple[Nic, ...]:
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
