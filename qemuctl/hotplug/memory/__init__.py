"""Another amount of memory for a running VM.

`memory` is the facet ``vm.memory``. `choose` decides, purely, by what a VM gets
another amount: its balloon, virtio-mem or DIMMs; `devices` plugs and unplugs the
latter two, and is loaded when that is called for. `results` is what comes back. Start
with `choose`.
"""

from __future__ import annotations

from qemuctl.lazy import exports

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from qemuctl.hotplug.memory.devices import MemoryDevices
    from qemuctl.registry.records.started_spec import started_spec

__getattr__ = exports(
    __name__,
    {
        "MemoryDevices": "qemuctl.hotplug.memory.devices",
        "started_spec": "qemuctl.registry.records.started_spec",
    },
)

__all__ = [
    "MemoryDevices",
    "started_spec",
]
