"""The switches of the whole machine, as in qemu(1)."""

from __future__ import annotations

from typing import ClassVar

from qemuctl.cmdline.keyval import KeyvalOption


class Name(KeyvalOption):
    """What the process and its threads are called."""

    OPTION: ClassVar = "-name"
    guest: str
    debug_threads: bool = True


class MachineOption(KeyvalOption):
    """The machine type and its properties."""

    OPTION: ClassVar = "-machine"
    HEAD: ClassVar = "type"
    type: str
    vmport: bool | None = None
    graphics: bool | None = None
    sata: bool | None = None
    memory_backend: str | None = None


class AccelOption(KeyvalOption):
    """The accelerator; ``tb_size`` is in MiB, TCG only."""

    OPTION: ClassVar = "-accel"
    HEAD: ClassVar = "accel"
    accel: str
    tb_size: int | None = None


class Smp(KeyvalOption):
    """Processors at start, how many there may be, and their layout."""

    OPTION: ClassVar = "-smp"
    cpus: int
    maxcpus: int | None = None
    sockets: int | None = None
    cores: int | None = None
    threads: int | None = None


class MemoryOption(KeyvalOption):
    """RAM; sizes carry their suffix, as in ``512M``."""

    OPTION: ClassVar = "-m"
    size: str
    slots: int | None = None
    maxmem: str | None = None


class Sandbox(KeyvalOption):
    """The seccomp filter: what QEMU may no longer do after its start."""

    OPTION: ClassVar = "-sandbox"
    HEAD: ClassVar = "enable"
    enable: bool = True
    obsolete: str = "deny"
    elevateprivileges: str = "deny"
    spawn: str = "deny"
    resourcecontrol: str = "deny"


class Action(KeyvalOption):
    """What QEMU does when the guest reboots or panics."""

    OPTION: ClassVar = "-action"
    reboot: str
    panic: str


class BootOption(KeyvalOption):
    """``strict``: devices without a boot index are not tried."""

    OPTION: ClassVar = "-boot"
    strict: bool


class Mon(KeyvalOption):
    """A QMP monitor on a chardev."""

    OPTION: ClassVar = "-mon"
    chardev: str
    mode: str = "control"


class Vnc(KeyvalOption):
    """A VNC server: ``unix:PATH`` or ``HOST:DISPLAY``.

    With ``password`` nobody gets in until one is set over QMP.
    """

    OPTION: ClassVar = "-vnc"
    HEAD: ClassVar = "address"
    address: str
    password: bool | None = None


class Spice(KeyvalOption):
    """A SPICE server: on a unix socket at ``addr``, or at ``addr`` and ``port``.

    Unless ``disable_ticketing``, nobody gets in until a password is set over QMP.
    """

    OPTION: ClassVar = "-spice"
    unix: bool | None = None
    addr: str
    port: int | None = None
    disable_ticketing: bool | None = None
