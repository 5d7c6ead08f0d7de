"""`Vm`, a façade: the connection to a VM that runs, joined with its facets.

The names here are the facets, each loaded when it is first used. `vm` is the façade,
`attach` finds a VM that runs and loads nothing of what starts one. `listing` shows
all VMs, `all_events` follows them; `running_spec` reads a VM that runs back into a
spec, `spec_diff` compares it with what its file says; `ssh` finds the way into a
guest, and `files` copies in and out.

It builds on all facets. Start with `vm`.
"""

from __future__ import annotations

from qemuctl.lazy import exports

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from qemuctl.guest.info import Inside
    from qemuctl.hotplug.bus import Bus
    from qemuctl.hotplug.cdrom import Cdrom
    from qemuctl.hotplug.cpus import Cpus
    from qemuctl.hotplug.disks.disks import Disks
    from qemuctl.hotplug.memory.memory import Memory
    from qemuctl.hotplug.nics.nics import Nics
    from qemuctl.power.power import Power
    from qemuctl.screen.keyboard import Keyboard
    from qemuctl.screen.screen import Screen
    from qemuctl.snapshots.online import Snapshots
    from qemuctl.stats.one_vm import Stats
    from qemuctl.vm.files import Files

__getattr__ = exports(
    __name__,
    {
        "Bus": "qemuctl.hotplug.bus",
        "Cdrom": "qemuctl.hotplug.cdrom",
        "Cpus": "qemuctl.hotplug.cpus",
        "Disks": "qemuctl.hotplug.disks.disks",
        "Files": "qemuctl.vm.files",
        "Inside": "qemuctl.guest.info",
        "Keyboard": "qemuctl.screen.keyboard",
        "Memory": "qemuctl.hotplug.memory.memory",
        "Nics": "qemuctl.hotplug.nics.nics",
        "Power": "qemuctl.power.power",
        "Screen": "qemuctl.screen.screen",
        "Snapshots": "qemuctl.snapshots.online",
        "Stats": "qemuctl.stats.one_vm",
    },
)

__all__ = [
    "Bus",
    "Cdrom",
    "Cpus",
    "Disks",
    "Files",
    "Inside",
    "Keyboard",
    "Memory",
    "Nics",
    "Power",
    "Screen",
    "Snapshots",
    "Stats",
]
