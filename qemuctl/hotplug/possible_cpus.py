"""How many processors a guest's kernel has room for, as the guest itself says.

Linux fixes that number when it boots. QEMU's room (``-smp maxcpus``) reaches it as
disabled entries of the ACPI table MADT, and since Linux 6.18 (6.12.60 and other stable
ones) such entries count only under a hypervisor that the kernel knows. TCG is none:
there a processor is accepted and never appears.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from qemuctl.connection.connection import Connection
from qemuctl.hotplug.guest_ready import ask_agent

# Ranges of numbers, such as 0-3,8; of those that are or may come.
POSSIBLE = "/sys/devices/system/cpu/possible"
_RANGES = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
_LONGEST = 4096


async def possible_cpus(vm: Connection) -> int | None:
    """How many processors the guest can have until its next boot (guest-file-read);
    None where no agent tells, and where it is no Linux."""
    handle = await ask_agent(vm, "guest-file-open", {"path": POSSIBLE, "mode": "r"})
    if not isinstance(handle, int):
        return None
    wanted = {"handle": handle, "count": _LONGEST}
    reply = await ask_agent(vm, "guest-file-read", wanted)
    await ask_agent(vm, "guest-file-close", {"handle": handle})
    return _counted(reply)


def _counted(reply: Any) -> int | None:
    """How many numbers the ranges in guest-file-read's reply hold."""
    try:
        text = base64.b64decode(reply["buf-b64"]).decode("ascii").strip()
    except (TypeError, KeyError, binascii.Error, ValueError):
        return None
    if not _RANGES.fullmatch(text):
        return None
    total = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total if total > 0 else None
