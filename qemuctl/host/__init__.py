"""What this host can do: QEMU's features, the accelerator, free resources.

Synchronous and read-only, but for one cache of what a QEMU binary offers::

    host = inspect_host(spec)      # find_qemu, probe, choose_accel
    host.binary.require_device("virtio-blk-pci", "disks[0].bus")
    print(host.accel.reason)

`doctor` turns the same facts into advice for people.
"""

from qemuctl.host.accel import Accel, KvmFacts, choose_accel, gather_kvm_facts
from qemuctl.host.binary import Binary, MachineType
from qemuctl.host.discovery import find_qemu, probe
from qemuctl.host.inspection import Host, inspect_host

__all__ = [
    "Accel",
    "Binary",
    "Host",
    "KvmFacts",
    "MachineType",
    "choose_accel",
    "find_qemu",
    "gather_kvm_facts",
    "inspect_host",
    "probe",
]
