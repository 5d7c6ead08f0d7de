"""Disks in and out of a running VM, their size and their limits.

`disks` is the facet ``vm.disks``. What a change needs is found out first, against the
spec (`in_spec`, `size_and_limits`), then made in QEMU (`add`), then written to the
spec. `throttle` sets the limits of a disk, `seen_by_guest` asks whether the guest's
kernel has it, `results` is what comes back. What only some changes need is loaded
with them. Start with `add`.
"""

from __future__ import annotations

from qemuctl.lazy import exports

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from qemuctl.hotplug.disks import add as add
    from qemuctl.hotplug.disks import in_spec as in_spec
    from qemuctl.hotplug.disks import size_and_limits as size_and_limits

__getattr__ = exports(
    __name__,
    {
        "add": "qemuctl.hotplug.disks.add",
        "in_spec": "qemuctl.hotplug.disks.in_spec",
        "size_and_limits": "qemuctl.hotplug.disks.size_and_limits",
    },
)
