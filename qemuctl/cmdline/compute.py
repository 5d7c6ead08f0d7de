"""The machine itself: type, accelerator, processors, memory."""

from __future__ import annotations

from collections.abc import Iterator

from qemuctl.cmdline.keyval import Plain
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.memory_blocks import virtio_mem_room
from qemuctl.cmdline.options import AccelOption, MachineOption, MemoryOption, Smp
from qemuctl.cmdline.ram import RAM
from qemuctl.errors import SpecError
from qemuctl.host import Host, MachineType
from qemuctl.host.accel import host_model
from qemuctl.spec.model import Spec
from qemuctl.units import MIB

MEMORY_SLOTS = 8
# MiB. QEMU's own default is an eighth of the host's memory, up to 1 GiB, and a
# long-lived guest fills it. A quarter holds a booted Linux and its programs.
TRANSLATION_CACHE = 256


def compute(spec: Spec, host: Host, *, in_file: bool) -> Iterator[Element]:
    """``-machine``, ``-accel``, ``-cpu``, ``-smp`` and ``-m``.

    ``in_file``: the memory is an object of its own (`RamFile`).
    Raises SpecError for what the machine cannot do, HostError for what the
    binary does not have.
    """
    # The exact type, never an alias: saved state can only be loaded by the
    # same one, and an upgrade of QEMU gives the alias another meaning.
    machine = host.binary.machine(spec.machine)
    disguised = _disguised(spec, host)
    yield _machine(spec, machine, in_file=in_file, vmport=disguised)
    yield _accel(host)
    model = spec.cpu.model or host.accel.cpu_model
    if model is not None:
        model = host_model(model, host.accel)
        host.binary.require_cpu_model(model, "cpu.model")
        yield Plain(option="-cpu", value=_unseen(model) if disguised else model)
    if disguised:
        yield Plain(option="-smbios", value="type=1,serial=VMware-qemuctl")
    yield _processors(spec, machine)
    yield _memory(spec)


def _disguised(spec: Spec, host: Host) -> bool:
    """Whether the guest shall take QEMU for VMware, whose back door QEMU has.

    Linux asks the back door when the processor tells of no hypervisor and the serial
    number holds "VMware" (arch/x86/kernel/cpu/vmware.c). It does not know TCG's name.
    """
    if spec.cpu.hypervisor is None:
        return False
    if spec.chipset == "microvm":
        raise SpecError(
            "microvm has no back door of VMware's",
            key="cpu.hypervisor",
            hint="use machine: q35, or leave out cpu.hypervisor",
        )
    return host.accel.kind == "tcg"


def _unseen(model: str) -> str:
    """A CPU model that tells of no hypervisor; that of a running one may be it."""
    off = ",hypervisor=off"
    return model if model.endswith(off) else model + off


def _machine(
    spec: Spec, machine: MachineType, *, in_file: bool, vmport: bool
) -> MachineOption:
    pc = spec.chipset != "microvm"
    # Tells SeaBIOS and boot loaders to use the serial port. With a kernel of
    # our own it would only fill the log with escape sequences.
    headless = pc and spec.boot.kernel is None and screen_model(spec) is None
    return MachineOption(
        type=machine.name,
        # VMware's back door is one more way in: it is there for who asks for it.
        vmport=vmport if pc else None,
        graphics=False if headless and spec.serial else None,
        sata=None if _uses_sata(spec) else False,
        memory_backend=RAM if in_file else None,
    )


def _uses_sata(spec: Spec) -> bool:
    """Whether the disk controller that q35 has by itself is of use. A guest spends a
    sixth of its boot on looking for disks there."""
    if spec.chipset != "q35" or spec.extra_args or spec.cdrom is not None:
        return True
    return any(disk.bus == "sata" for disk in spec.disks)


def screen_model(spec: Spec) -> str | None:
    """The graphics card in force; None when there is none."""
    model = spec.display.vga
    if model is None and spec.display.type != "none":
        return "std"
    return None if model == "none" else model


def _accel(host: Host) -> AccelOption:
    kind = host.accel.kind
    # Whether TCG runs a thread per vCPU is left to QEMU: it knows where the
    # host's memory order allows that.
    return AccelOption(accel=kind, tb_size=TRANSLATION_CACHE if kind == "tcg" else None)


def _processors(spec: Spec, machine: MachineType) -> Smp:
    cpu = spec.cpu
    most = cpu.max or cpu.count
    key = "cpu.max" if cpu.max else "cpu.count"
    if most > machine.cpu_max:
        raise SpecError(
            f"too many processors: {most}, {machine.name} takes {machine.cpu_max}",
            key=key,
        )
    if most > cpu.count and not machine.hotpluggable_cpus:
        raise SpecError(
            f"{machine.name} cannot plug processors while it runs",
            key=key,
            hint="use machine: q35, or leave out cpu.max",
        )
    topology = cpu.topology
    return Smp(
        cpus=cpu.count,
        maxcpus=most,
        sockets=topology.sockets if topology else None,
        cores=topology.cores if topology else None,
        threads=topology.threads if topology else None,
    )


def _memory(spec: Spec) -> MemoryOption:
    memory = spec.memory
    size = f"{memory.size // MIB}M"
    # QEMU refuses slots when there is nothing to put into them.
    if memory.max is None or memory.max == memory.size:
        return MemoryOption(size=size)
    if spec.chipset == "microvm":
        raise SpecError(
            "microvm cannot plug memory while it runs",
            key="memory.max",
            hint="use machine: q35, or leave out memory.max",
        )
    # Room for virtio-mem, and for as many DIMMs: a guest may turn out not to have
    # a driver for the former, which QEMU does not take out again.
    room = memory.max - memory.size
    maxmem = memory.size + virtio_mem_room(room, memory.max) + room
    return MemoryOption(
        size=size,
        slots=memory.slots or MEMORY_SLOTS,
        maxmem=f"{maxmem // MIB}M",
    )
