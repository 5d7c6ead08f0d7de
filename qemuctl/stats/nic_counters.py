"""Bytes and packets of network cards: the host's own counters, or the guest's.

QEMU counts nothing for user networking. A tap interface has counters on the
host; for all else there is what the guest's agent tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from qemuctl.guest.agent import makes_sense
from qemuctl.stats.sample import NicCounters
from qemuctl.structs import Struct
from qemuctl.tail import plain

# The guest may send any number.
MOST = 64
_LARGEST = 2**64 - 1
_SYSFS = Path("/sys/class/net")
_COUNTERS = {
    "received_bytes": "rx-bytes",
    "sent_bytes": "tx-bytes",
    "received_packets": "rx-packets",
    "sent_packets": "tx-packets",
}


class Tap(Struct, kw_only=False):
    """A card that is plugged into an interface of the host."""

    id: str
    ifname: str
    mac: str | None


def taps(argv: Sequence[str]) -> list[Tap]:
    """The cards of a QEMU command line whose backend is a tap interface."""
    backends: dict[str, str] = {}
    found = []
    for option, value in pairwise(argv):
        if option not in ("-netdev", "-device") or not value.startswith("{"):
            continue
        element = json.loads(value)
        if element.get("type") == "tap" and "ifname" in element:
            backends[element["id"]] = element["ifname"]
        elif element.get("netdev") in backends:
            ifname = backends[element["netdev"]]
            found.append(Tap(str(element.get("id")), ifname, element.get("mac")))
    return found


def of_tap(tap: Tap, clock: float, sysfs: Path = _SYSFS) -> NicCounters | None:
    """The counters of a tap interface; what it sends, the guest receives."""
    folder = sysfs / tap.ifname / "statistics"

    def counter(name: str) -> int:
        return int((folder / name).read_text())

    try:
        return NicCounters(
            id=tap.id,
            clock=clock,
            received_bytes=counter("tx_bytes"),
            sent_bytes=counter("rx_bytes"),
            received_packets=counter("tx_packets"),
            sent_packets=counter("rx_packets"),
        )
    except (OSError, ValueError):
        return None


def of_guest(reply: Any, clock: float, known: Sequence[Tap]) -> list[NicCounters]:
    """The counters in a reply to guest-network-get-interfaces, but for the
    loopback interface and cards that the host counts itself.

    Raises AgentError for a reply of another shape.
    """
    found = []
    macs = {tap.mac for tap in known}
    with makes_sense("guest-network-get-interfaces"):
        for interface in list(reply)[:MOST]:
            name, statistics = interface["name"], interface.get("statistics")
            mac = interface.get("hardware-address")
            # Not every system has them, and not every agent.
            if not statistics or name == "lo" or mac in macs:
                continue
            found.append(
                NicCounters(
                    id=" ".join(plain(str(name)[:200]).split())[:64],
                    clock=clock,
                    **{key: _count(statistics[x]) for key, x in _COUNTERS.items()},
                )
            )
    return found


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"not a counter: {value!r:.60}")
    return min(max(value, 0), _LARGEST)
