"""What the user writes: one frozen model, every field with a default but `name`.

Nothing here knows about processes, paths of a VM, or the host. Field names
are QEMU's where QEMU has one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qemuctl.spec.arguments import check_arguments, taken_ids
from qemuctl.spec.base import Model as Model
from qemuctl.spec.cloud import CloudInit
from qemuctl.spec.scalars import (
    Argument,
    Size,
    Text,
    Whole,
    check_ipv4,
    check_mac,
    split_address,
)
from qemuctl.spec.scalars import check_name as check_name
from qemuctl.units import MIB, format_size

_MACHINE = re.compile(
    r"q35|pc|microvm|pc-(?:q35|i440fx)-[0-9]{1,3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?"
)
_FORWARD = re.compile(
    r"(?:(?:(?P<protocol>tcp|udp):)?(?:(?P<address>[0-9.]+):)?"
    r"(?P<host>[0-9]{0,5}):)?(?P<guest>[0-9]{1,5})"
)


def _check_unique(what: str, values: Iterable[Hashable]) -> None:
    for value, times in Counter(values).items():
        if value is not None and times > 1:
            raise ValueError(f"{what}: {value}")


class Topology(Model):
    """How the processors are laid out; the product is `cpu.max`."""

    sockets: Whole = Field(1, ge=1)
    cores: Whole = Field(1, ge=1)
    threads: Whole = Field(1, ge=1)


class Cpu(Model):
    """Processors: `count` at start, up to `max` by hot plug."""

    count: Whole = Field(1, ge=1, le=4096)
    max: Whole | None = Field(None, ge=1, le=4096)
    model: Text | None = Field(
        None, description="QEMU's CPU model; default: host under KVM, max under TCG"
    )
    topology: Topology | None = None
    hypervisor: Literal["vmware"] | None = Field(
        None,
        description="what an emulated guest is told that it runs on, in place of "
        "nothing; a new Linux (6.18, 6.12.60) takes hot-plugged processors only on a "
        "hypervisor that it knows. KVM tells its own name",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max is not None and self.max < self.count:
            raise ValueError(f"max is below count: {self.max} < {self.count}")
        if self.topology is not None:
            top = self.topology
            product = top.sockets * top.cores * top.threads
            if product != (self.max or self.count):
                raise ValueError(
                    f"topology gives {product} processors, but "
                    f"{'max' if self.max else 'count'} is {self.max or self.count}"
                )
        return self


class Memory(Model):
    """RAM: `size` at start; `slots` and `max` make room for hot plug."""

    size: Size = 512 * MIB
    max: Size | None = None
    slots: Whole | None = Field(None, ge=1, le=256)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.size < MIB:
            raise ValueError(f"too small: {self.size} bytes (write 512M)")
        for size in (self.size, self.max or 0):
            if size % MIB:
                raise ValueError(f"not a whole number of MiB: {size} bytes")
        if self.max is not None and self.max < self.size:
            raise ValueError(
                f"max is below size: {format_size(self.max)} < {format_size(self.size)}"
            )
        if self.slots is not None and self.max is None:
            raise ValueError("slots needs max: how far memory may grow")
        return self


class Boot(Model):
    """A kernel to boot directly, or the order in which devices are tried."""

    kernel: Text | None = None
    initrd: Text | None = None
    cmdline: Argument | None = None
    order: tuple[Literal["disk", "cdrom", "network"], ...] | None = None
    once: Literal["disk", "cdrom", "network"] | None = Field(
        None, description="tried first at the very first start, until the guest reboots"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.initrd is not None and self.kernel is None:
            raise ValueError("initrd needs kernel")
        _check_unique("named twice in order", self.order or ())
        return self


class Root(Model):
    """The disk that an image brings, made for this VM alone.

    `size` is what the guest sees, at least the image's own; `mode` tells
    whether it is an overlay on the image or a copy of it.
    """

    size: Size | None = Field(None, ge=512, description="default: the image's own")
    mode: Literal["overlay", "full"] = "overlay"


_ID = re.compile(r"[a-z][a-z0-9-]{0,19}")
# Names of devices that a VM has anyway, and of what belongs to a disk or card.
_RESERVED = re.compile(
    r"(port|net|scsi|ahci|usb|cdrom|cpu|dimm|vmem|rng)[0-9]*"
    r"|vga|vserial|agent|copy|balloon|tablet|pvpanic|cidata|.*-(file|throttle|mem)"
)


def _check_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(
            f"not an id: {value!r} (a letter, then up to 19 of a-z, 0-9 and -)"
        )
    if _RESERVED.fullmatch(value):
        raise ValueError(f"the id is taken by a part of every VM: {value}")
    return value


Id = Annotated[str, AfterValidator(_check_id)]
"""What a device is called for as long as it is there."""


class Disk(Model):
    """One disk: an existing file (`path`) or a new one of `size`."""

    id: Id | None = Field(
        None, description="its name, and its serial's default; default: diskN"
    )
    path: Text | None = None
    size: Size | None = None
    format: Literal["qcow2", "raw"] | None = Field(
        None, description="default: by the path's suffix, qcow2 for a new disk"
    )
    bus: Literal["virtio", "scsi", "sata", "ide"] = "virtio"
    readonly: bool = False
    cache: (
        Literal["none", "writeback", "writethrough", "directsync", "unsafe"] | None
    ) = None
    aio: Literal["threads", "native", "io_uring"] | None = None
    discard: Literal["unmap", "ignore"] = "unmap"
    serial: Text | None = Field(None, max_length=20)
    boot_index: Whole | None = Field(None, ge=0)
    iops: Whole | None = Field(None, ge=1, description="at most so many a second")
    bps: Size | None = Field(None, ge=512, description="at most so many bytes a second")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.path is None) == (self.size is None):
            raise ValueError("a disk has either a path or a size")
        if self.size is not None and self.size < 512:
            raise ValueError(f"too small: {self.size} bytes (write 10G)")
        if self.size is not None and self.readonly:
            raise ValueError("a new, empty disk cannot be read-only")
        if self.path is not None and self.format is None and self.by_suffix is None:
            raise ValueError(
                f"the format of {self.path!r} is not known: add format: qcow2 or raw"
            )
        if self.aio == "native" and self.cache not in ("none", "directsync"):
            raise ValueError("aio: native needs cache: none or directsync")
        return self

    @property
    def by_suffix(self) -> Literal["qcow2", "raw"] | None:
        """The format that the path's suffix names."""
        if self.path is not None and self.path.endswith(".qcow2"):
            return "qcow2"
        if self.path is not None and self.path.endswith(".raw"):
            return "raw"
        return None

    @property
    def driver(self) -> Literal["qcow2", "raw"]:
        """The format in force: always named, never guessed from the content."""
        return self.format or self.by_suffix or "qcow2"


def disk_ids(disks: Iterable[Disk]) -> list[str]:
    """The ids of all disks of a VM, the image's included: their own, or diskN.

    Raises ValueError where one has the id that is another's by its place.
    """
    ids = [disk.id or f"disk{index}" for index, disk in enumerate(disks)]
    _check_unique("two disks have the same id", ids)
    return ids


class Forward(Model):
    """A port of the host that leads to a port of the guest (user network).

    `host_port` 0 lets the kernel choose a free one.
    """

    protocol: Literal["tcp", "udp"] = "tcp"
    address: Text = "127.0.0.1"
    host_port: Whole = Field(0, ge=0, le=65535)
    guest_port: Whole = Field(ge=1, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            return value
        match = _FORWARD.fullmatch(value)
        if match is None:
            raise ValueError(
                f"not a port forward: {value!r} "
                "(write 8080:80, 127.0.0.1:2222:22 or :80)"
            )
        return {
            "protocol": match["protocol"] or "tcp",
            "address": match["address"] or "127.0.0.1",
            "host_port": int(match["host"] or 0),
            "guest_port": int(match["guest"]),
        }

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        return check_ipv4(value)

    @property
    def notation(self) -> str:
        """What a user would write: ``8080:80``, ``udp:0.0.0.0:53:53``, ``:22``."""
        protocol = "" if self.protocol == "tcp" else f"{self.protocol}:"
        address = "" if self.address == "127.0.0.1" else f"{self.address}:"
        return f"{protocol}{address}{self.host_port or ''}:{self.guest_port}"


class Nic(Model):
    """One network card and what it is plugged into."""

    id: Id | None = Field(None, description="its name; default: nicN")
    type: Literal["user", "none", "tap", "socket"] = "user"
    model: Text = Field(
        "virtio", description="virtio, e1000, e1000e, rtl8139, or a QEMU device name"
    )
    mac: Text | None = None
    forward: tuple[Forward, ...] = ()
    restrict: bool = Field(False, description="user: the guest reaches nothing outside")
    ifname: Text | None = Field(None, description="tap: an existing interface")
    listen: Text | None = Field(None, description="socket: unix path to listen on")
    connect: Text | None = Field(None, description="socket: unix path to connect to")
    link: Literal["up", "down"] = Field("up", description="down: its cable is out")

    @field_validator("mac")
    @classmethod
    def _mac(cls, value: str | None) -> str | None:
        return None if value is None else check_mac(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type != "user" and (self.forward or self.restrict):
            raise ValueError(f"forward and restrict need type: user, not {self.type}")
        if (self.type == "tap") != (self.ifname is not None):
            raise ValueError("type: tap and ifname belong together")
        if self.type == "socket" and (self.listen is None) == (self.connect is None):
            raise ValueError("type: socket has either listen or connect")
        if self.type != "socket" and (self.listen or self.connect):
            raise ValueError("listen and connect need type: socket")
        return self


def nic_ids(nics: Iterable[Nic]) -> list[str]:
    """The ids of all cards of a VM: their own, or nicN. Raises ValueError as
    `disk_ids` does."""
    ids = [nic.id or f"nic{index}" for index, nic in enumerate(nics)]
    _check_unique("two cards have the same id", ids)
    return ids


class Display(Model):
    """A screen, and how to reach it."""

    type: Literal["none", "vnc", "spice"] = "none"
    address: Text | None = Field(
        None, description="HOST:PORT; default: a unix socket of the VM's own"
    )
    vga: Literal["std", "virtio", "qxl", "none"] | None = Field(
        None, description="default: std with vnc or spice, else none"
    )
    password: bool | None = Field(
        None,
        description="closed until `qemuctl display NAME --vnc-password` sets one; "
        "default: with an address, which guests reach, too",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.password and self.type == "none":
            raise ValueError("password needs type: vnc or spice")
        if self.address is None:
            return self
        _, port = split_address(self.address)
        if self.type == "none":
            raise ValueError("address needs type: vnc or spice")
        if self.type == "vnc" and port < 5900:
            # QEMU counts VNC displays, not ports, and display 0 is port 5900.
            raise ValueError(f"a VNC port is 5900 or above: {port}")
        return self

    @property
    def locked(self) -> bool:
        """Whether a viewer must know a password."""
        if self.password is not None:
            return self.password
        # A guest reaches the host's loopback, too (10.0.2.2).
        return self.address is not None


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
    cpu: Annotated[Cpu, _short("count")] = Cpu()
    memory: Annotated[Memory, _short("size")] = Memory()
    firmware: Literal["bios"] = "bios"
    boot: Boot = Boot()
    root: Annotated[Root, _short("size")] = Root()
    disks: tuple[Disk, ...] = ()
    cdrom: Text | Literal[""] | None = Field(
        None, description="an image; empty: a drive without a medium"
    )
    trust_backing: bool = Field(
        False, description="follow backing files wherever disk images name them"
    )
    cloud_init: Annotated[CloudInit | None, _short("enabled")] = None
    nics: tuple[Annotated[Nic, _short("type")], ...] = (Nic(),)
    serial: bool = True
    display: Annotated[Display, _short("type")] = Display()
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
        _check_unique(
            "two disks have the same boot_index", (d.boot_index for d in value)
        )
        _check_unique("two disks have the same id", (disk.id for disk in value))
        return value

    @field_validator("nics")
    @classmethod
    def _nics(cls, value: tuple[Nic, ...]) -> tuple[Nic, ...]:
        _check_unique("two cards have the same mac", (nic.mac for nic in value))
        _check_unique("two cards have the same id", (nic.id for nic in value))
        _check_unique(
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
