"""A QEMU binary and an accelerator: what a command line is built for."""

from __future__ import annotations

from qemuctl.host.accel import Accel, choose_accel, for_cpu_model
from qemuctl.host.binary import Binary
from qemuctl.host.discovery import find_qemu, probe
from qemuctl.host.resources import tsc_khz
from qemuctl.spec.model import Spec
from qemuctl.structs import Struct


class Host(Struct):
    """What the host brings to one VM."""

    binary: Binary
    accel: Accel

    @property
    def guest_tsc_khz(self) -> int | None:
        """The rate of a guest's time stamp counter, which under emulation is the
        host's; None where it is unknown, or the guest can ask KVM for it."""
        return tsc_khz() if self.accel.kind == "tcg" else None


def inspect_host(spec: Spec) -> Host:
    """Finds and asks the QEMU that ``spec`` names, and chooses the accelerator.

    Raises HostError when there is no usable QEMU, or KVM is demanded and
    cannot work; SpecError for a CPU model that the accelerator has not.
    """
    binary = probe(find_qemu(spec))
    accel = choose_accel(spec.accel, binary)
    return Host(binary=binary, accel=for_cpu_model(accel, spec.accel, spec.cpu.model))
