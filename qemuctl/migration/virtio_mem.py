"""A guest that some QEMUs abort when it is migrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.errors import StateError
from qemuctl.qmp.memory import QueryMemoryDevices

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm


async def check_virtio_mem(vm: Vm) -> None:
    """Raises StateError for a guest that QEMU would abort while it sends it.

    Under TCG QEMU 10.0 ends by an assertion of its own (tlb_reset_dirty_range_all)
    when the guest writes to memory of a virtio-mem device; 7.2 does not. Nothing that
    can be asked tells the two apart, so all but 7.2 are taken for the former.
    """
    if vm.record.accel != "tcg" or vm.record.version.startswith("7."):
        return
    for device in await vm.execute(QueryMemoryDevices()):
        data = device.data or {}
        if device.type == "virtio-mem" and data["size"] > 0:
            raise StateError(
                f"migrate {vm.name}", "running",
                "QEMU would end: its emulated machine (TCG) uses virtio-mem memory",
                hint="with the memory of its start it can be migrated: "
                f"qemuctl set {vm.name} --memory SIZE; "
                f"or save it: qemuctl save {vm.name} FILE",
            )  # fmt: skip
