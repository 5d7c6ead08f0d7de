"""Processors, memory, what is booted, and the screen."""

from __future__ import annotations

from typing import Literal

from qemuctl.spec.base import Model
from qemuctl.spec.scalars import Argument, Size, Text, split_address
from qemuctl.spec.unique import check_unique
from qemuctl.typed.marks import setting
from qemuctl.units import MIB, format_size

# An empty disk is passed over until something is installed on it.
USUAL_ORDER: tuple[Literal["disk", "cdrom", "network"], ...] = ("disk", "cdrom")


class Topology(Model):
    """How the processors are laid out; the product is `cpu.max`."""

    sockets: int = setting(default=1, ge=1)
    cores: int = setting(default=1, ge=1)
    threads: int = setting(default=1, ge=1)


class Cpu(Model, plain="count"):
    """Processors: `count` at start, up to `max` by hot plug."""

    count: int = setting(default=1, ge=1, le=4096)
    max: int | None = setting(default=None, ge=1, le=4096)
    model: Text | None = setting(
        default=None,
        description="QEMU's CPU model; default: host under KVM, max under TCG",
    )
    topology: Topology | None = None
    hypervisor: Literal["vmware"] | None = setting(
        default=None,
        description="what an emulated guest is told that it runs on, in place of "
        "nothing; a new Linux (6.18, 6.12.60) takes hot-plugged processors only on a "
        "hypervisor that it knows. KVM tells its own name",
    )

    def __post_init__(self) -> None:
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


class Memory(Model, plain="size"):
    """RAM: `size` at start; `slots` and `max` make room for hot plug."""

    size: Size = 512 * MIB
    max: Size | None = None
    slots: int | None = setting(default=None, ge=1, le=256)

    def __post_init__(self) -> None:
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


class Boot(Model):
    """A kernel to boot directly, or the order in which devices are tried."""

    kernel: Text | None = None
    initrd: Text | None = None
    cmdline: Argument | None = None
    order: tuple[Literal["disk", "cdrom", "network"], ...] | None = None
    once: Literal["disk", "cdrom", "network"] | None = setting(
        default=None,
        description="tried first at the very first start, until the guest reboots",
    )

    def __post_init__(self) -> None:
        if self.initrd is not None and self.kernel is None:
            raise ValueError("initrd needs kernel")
        check_unique("named twice in order", self.order or ())


class Root(Model, plain="size"):
    """The disk that an image brings, made for this VM alone.

    `size` is what the guest sees, at least the image's own; `mode` tells
    whether it is an overlay on the image or a copy of it.
    """

    size: Size | None = setting(
        default=None, ge=512, description="default: the image's own"
    )
    mode: Literal["overlay", "full"] = "overlay"


class Display(Model, plain="type"):
    """A screen, and how to reach it."""

    type: Literal["none", "vnc", "spice"] = "none"
    address: Text | None = setting(
        default=None, description="HOST:PORT; default: a unix socket of the VM's own"
    )
    vga: Literal["std", "virtio", "qxl", "none"] | None = setting(
        default=None, description="default: std with vnc or spice, else none"
    )
    password: bool | None = setting(
        default=None,
        description="closed until `qemuctl display NAME --vnc-password` sets one; "
        "default: with an address, which guests reach, too",
    )

    def __post_init__(self) -> None:
        if self.password and self.type == "none":
            raise ValueError("password needs type: vnc or spice")
        if self.address is None:
            return
        _, port = split_address(self.address)
        if self.type == "none":
            raise ValueError("address needs type: vnc or spice")
        if self.type == "vnc" and port < 5900:
            # QEMU counts VNC displays, not ports, and display 0 is port 5900.
            raise ValueError(f"a VNC port is 5900 or above: {port}")

    @property
    def locked(self) -> bool:
        """Whether a viewer must know a password."""
        if self.password is not None:
            return self.password
        # A guest reaches the host's loopback, too (10.0.2.2).
        return self.address is not None
