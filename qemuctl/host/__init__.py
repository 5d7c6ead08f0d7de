"""What this host can do: QEMU's features, the accelerator, free resources.

Synchronous and read-only, but for one cache of what a QEMU binary offers::

    host = inspect_host(spec)      # find_qemu, probe, choose_accel
    host.binary.require_device("virtio-blk-pci", "disks[0].bus")
    print(host.accel.reason)

`doctor` turns the same facts into advice for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.host.accel import (
        Accel,
        KvmFacts,
        choose_accel,
        doubt,
        gather_kvm_facts,
    )
    from qemuctl.host.binary import Binary, MachineType
    from qemuctl.host.discovery import find_qemu, probe
    from qemuctl.host.inspection import Host, inspect_host

__getattr__ = exports(
    __name__,
    {
        "Accel": "qemuctl.host.accel",
        "Binary": "qemuctl.host.binary",
        "Host": "qemuctl.host.inspection",
        "KvmFacts": "qemuctl.host.accel",
        "MachineType": "qemuctl.host.binary",
        "choose_accel": "qemuctl.host.accel",
        "doubt": "qemuctl.host.accel",
        "find_qemu": "qemuctl.host.discovery",
        "gather_kvm_facts": "qemuctl.host.accel",
        "inspect_host": "qemuctl.host.inspection",
        "probe": "qemuctl.host.discovery",
    },
)

__all__ = [
    "Accel",
    "Binary",
    "Host",
    "KvmFacts",
    "MachineType",
    "choose_accel",
    "doubt",
    "find_qemu",
    "gather_kvm_facts",
    "inspect_host",
    "probe",
]
