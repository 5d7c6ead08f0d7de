"""QMP commands about network cards, and the human monitor's for port forwards.

QMP has none for forwards. The human monitor answers in text, its failures
included; `forward_problem` tells which is which.
"""

from __future__ import annotations

import re
from typing import Any

from qemuctl.qmp.commands import Command, HumanMonitorCommand
from qemuctl.structs import Struct

# `info usernet`: a heading for each back end (its hub's number on older QEMU,
# where that has a name of its own), then its sockets; those of connections
# have another state.
_HEADING = re.compile(r"^(?:Hub|VLAN) .*\((?P<netdev>[^()]+)\):\s*$")
_FORWARD = re.compile(
    r"^\s*(?P<protocol>TCP|UDP)\[HOST_FORWARD\]\s+\d+"
    r"\s+(?P<address>\S+)\s+(?P<port>\d+)\s+(?P<to>\S+)\s+(?P<guest>\d+)\s"
)
# `info network`: a line for each card or back end; what hangs on it is indented.
_CLIENT = re.compile(r"^(?P<peer> \\ )?(?P<name>\S+): index=0,type=(?P<type>[\w-]+),?")
_FACT = re.compile(r",(model|macaddr)=([^,\s]+)")


class SetLink(Command[dict[str, Any]]):
    """Plugs a card's cable in or out; ``name`` is the card's own id. QEMU cannot be
    asked which it is."""

    NAME = "set_link"
    name: str
    up: bool


class PropertyInfo(Struct):
    """device-list-properties: a property that a kind of device has."""

    name: str
    type: str


class DeviceListProperties(Command[list[PropertyInfo]]):
    NAME = "device-list-properties"
    REPLY = PropertyInfo
    typename: str


class HostForward(Struct):
    """A port of the host, ``address:port``, that leads to one of the guest, at its
    ``guest_address`` on QEMU's user network."""

    netdev: str
    protocol: str
    address: str
    port: int
    guest_port: int
    guest_address: str = ""

    @property
    def text(self) -> str:
        """``127.0.0.1:8080->80``, and ``/udp`` behind it where it is not TCP."""
        ending = "/udp" if self.protocol == "udp" else ""
        return f"{self.address}:{self.port}->{self.guest_port}{ending}"

    @property
    def rule(self) -> str:
        """As `hostfwd_add` takes it."""
        host = f"{self.protocol}:{self.address}:{self.port}"
        return f"{host}-{self.guest_address}:{self.guest_port}"


class Card(Struct):
    """A network card that QEMU has now; ``backend`` is of ``type`` user, tap, …

    ``mac`` is the one that it has by now: guests may change it.
    """

    id: str
    model: str
    mac: str
    backend: str | None = None
    type: str | None = None


def usernet() -> HumanMonitorCommand:
    """Asks for the user network's sockets; `parse_usernet` reads the reply."""
    return HumanMonitorCommand(command_line="info usernet")


def parse_usernet(text: str) -> list[HostForward]:
    """The forwards of all back ends in the reply to `usernet`."""
    found, netdev = [], ""
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            netdev = heading["netdev"]
        elif match := _FORWARD.match(line):
            address = match["address"]
            found.append(
                HostForward(
                    netdev=netdev,
                    protocol=match["protocol"].lower(),
                    address="0.0.0.0" if address == "*" else address,  # noqa: S104
                    port=int(match["port"]),
                    guest_port=int(match["guest"]),
                    guest_address=match["to"],
                )
            )
    return found


def network() -> HumanMonitorCommand:
    """Asks for cards and back ends; `parse_network` reads the reply."""
    return HumanMonitorCommand(command_line="info network")


def parse_network(text: str) -> list[Card]:
    """The cards in the reply to `network`, each with what it is plugged into."""
    found: list[Card] = []
    for line in text.splitlines():
        match = _CLIENT.match(line)
        if match is None:
            continue
        if match["peer"] is None and match["type"] == "nic":
            facts = dict(_FACT.findall(line))
            model, mac = facts.get("model", ""), facts.get("macaddr", "")
            found.append(Card(id=match["name"], model=model, mac=mac))
        elif match["peer"] is not None and found:
            card = found.pop()
            found.append(
                Card(
                    id=card.id,
                    model=card.model,
                    mac=card.mac,
                    backend=match["name"],
                    type=match["type"],
                )
            )
    return found


def client_names(text: str) -> set[str]:
    """The names of all cards and back ends in the reply to `network`."""
    return {
        match["name"] for line in text.splitlines() if (match := _CLIENT.match(line))
    }


def hostfwd_add(netdev: str, rule: str) -> HumanMonitorCommand:
    """Adds a forward to a back end; ``rule`` as in ``tcp:127.0.0.1:8080-:80``."""
    return HumanMonitorCommand(command_line=f"hostfwd_add {netdev} {rule}")


def hostfwd_remove(forward: HostForward) -> HumanMonitorCommand:
    """Takes a forward away; connections through it go on."""
    rule = f"{forward.protocol}:{forward.address}:{forward.port}"
    return HumanMonitorCommand(command_line=f"hostfwd_remove {forward.netdev} {rule}")


def forward_problem(reply: str) -> str | None:
    """What went wrong, in QEMU's words; None where the reply tells of success."""
    words = reply.strip()
    return None if not words or words.endswith(" removed") else words
