"""Whether a guest sees a disk, by what its kernel says (`/sys/block`).

Needs the agent and a shell, so it is asked of Linux only. All that comes back is
the guest's own word, and checked.
"""

from __future__ import annotations

import asyncio
import re

from qemuctl.connection.connection import Connection
from qemuctl.errors import AgentError, QmpError, WaitTimeout
from qemuctl.hotplug.sight import Sight
from qemuctl.qmp.commands import QueryChardev
from qemuctl.structs import Struct

# Seconds for a guest to find a disk, and between two looks: there is no event.
PATIENCE = 5.0
_LOOK_EVERY = 0.2
_SECTOR = 512
# SCSI disks have their serial behind the four bytes of a page's header.
_SCRIPT = """
for d in /sys/block/*; do
    if [ -r $d/serial ]; then s=$(cat $d/serial)
    else s=$(tail -c +5 $d/device/vpd_pg80 2>/dev/null); fi
    echo "${d##*/} $(cat $d/size) $s"
done
"""
_LINE = re.compile(r"([a-z][a-z0-9!-]{0,31}) (\d{1,18}) ?(.*)")


class GuestDisk(Struct, kw_only=False):
    """A disk as the guest has it; ``size_bytes`` in bytes."""

    device: str
    size_bytes: int
    serial: str


async def guest_disks(
    vm: Connection, *, timeout: float = PATIENCE
) -> list[GuestDisk] | None:
    """The disks that the guest has (guest-exec); None when it does not say."""
    try:
        ports = await vm.execute(QueryChardev())
        if not any(port.label == "agent" and port.frontend_open for port in ports):
            return None
        async with asyncio.timeout(timeout):
            result = await vm.agent.run(["sh", "-c", _SCRIPT])
    except (AgentError, QmpError, WaitTimeout, TimeoutError):
        return None
    if not result.ok:
        return None
    found = map(_LINE.fullmatch, result.text.splitlines()[:1000])
    return [
        GuestDisk(m[1], int(m[2]) * _SECTOR, m[3].strip()[:20])
        for m in found
        if m is not None
    ]


async def sight(
    vm: Connection,
    serial: str,
    *,
    size_bytes: int | None = None,
    timeout: float = PATIENCE,
) -> Sight:
    """Whether the guest sees a disk, of this size if one is given, or comes to see
    it in ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        disks = await guest_disks(vm, timeout=max(end - loop.time(), 0))
        if disks is None:
            return Sight("no agent")
        for disk in disks:
            if disk.serial == serial[:20] and size_bytes in (None, disk.size_bytes):
                return Sight("seen", disk.device)
        if loop.time() + _LOOK_EVERY > end:
            return Sight("not seen")
        await asyncio.sleep(_LOOK_EVERY)
