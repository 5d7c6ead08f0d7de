"""`Vm`, which joins the rooms to the left, and one facet a file.

QEMU's run state is the truth about a VM and is asked for, never kept. What
is kept is what QEMU cannot know: the spec, who the process is (`record`), and
how it ended (`outcome`). Which request is admitted in which state is data
(`states`). What few commands need of a VM is loaded when it is first used, by the
names that are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.search import search
    from qemuctl.vm import disk_config as disk_config
    from qemuctl.vm import disk_insert as disk_insert
    from qemuctl.vm import disk_settings as disk_settings
    from qemuctl.vm.cpus import Cpus
    from qemuctl.vm.disk_plug import Disks
    from qemuctl.vm.files import Files
    from qemuctl.vm.forkable import check_command
    from qemuctl.vm.inside import Inside
    from qemuctl.vm.jobs import loaded
    from qemuctl.vm.keyboard import Keyboard
    from qemuctl.vm.launch import start
    from qemuctl.vm.live import Live
    from qemuctl.vm.media import Cdrom
    from qemuctl.vm.memory import Memory
    from qemuctl.vm.memory_devices import MemoryDevices
    from qemuctl.vm.nics import Nics
    from qemuctl.vm.power import Power
    from qemuctl.vm.readiness import unless_hopeless
    from qemuctl.vm.screen import Screen
    from qemuctl.vm.snapshot_guest import set_clock
    from qemuctl.vm.snapshots import Snapshots
    from qemuctl.vm.ssh import shut_down
    from qemuctl.vm.started import started_spec
    from qemuctl.vm.stats import Stats
    from qemuctl.vm.take_back import taken_back

__getattr__ = exports(
    __name__,
    {
        "Cdrom": "qemuctl.vm.media",
        "Cpus": "qemuctl.vm.cpus",
        "Disks": "qemuctl.vm.disk_plug",
        "Files": "qemuctl.vm.files",
        "Inside": "qemuctl.vm.inside",
        "Keyboard": "qemuctl.vm.keyboard",
        "Live": "qemuctl.vm.live",
        "Memory": "qemuctl.vm.memory",
        "MemoryDevices": "qemuctl.vm.memory_devices",
        "Nics": "qemuctl.vm.nics",
        "Power": "qemuctl.vm.power",
        "Screen": "qemuctl.vm.screen",
        "Snapshots": "qemuctl.vm.snapshots",
        "Stats": "qemuctl.vm.stats",
        "check_command": "qemuctl.vm.forkable",
        "disk_config": "qemuctl.vm.disk_config",
        "disk_insert": "qemuctl.vm.disk_insert",
        "disk_settings": "qemuctl.vm.disk_settings",
        "loaded": "qemuctl.vm.jobs",
        "search": "qemuctl.search",
        "set_clock": "qemuctl.vm.snapshot_guest",
        "shut_down": "qemuctl.vm.ssh",
        "start": "qemuctl.vm.launch",
        "started_spec": "qemuctl.vm.started",
        "taken_back": "qemuctl.vm.take_back",
        "unless_hopeless": "qemuctl.vm.readiness",
    },
)

__all__ = [
    "Cdrom",
    "Cpus",
    "Disks",
    "Files",
    "Inside",
    "Keyboard",
    "Live",
    "Memory",
    "MemoryDevices",
    "Nics",
    "Power",
    "Screen",
    "Snapshots",
    "Stats",
    "check_command",
    "loaded",
    "search",
    "set_clock",
    "shut_down",
    "start",
    "started_spec",
    "taken_back",
    "unless_hopeless",
]
