"""A fake QEMU that has network cards, too: back ends, cables, forwards."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from fake_qemu import FakeQemu, Refused

HEAD = "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ"


class FakeNics(FakeQemu):
    """``netdevs`` have their ``forwards``, as (protocol, address, port, guest port);
    ``down`` are the cards without a cable, ``says`` are replies of the human monitor
    in the place of its own."""

    def __init__(self, events: Path) -> None:
        super().__init__(events)
        self.netdevs: dict[str, dict[str, Any]] = {}
        self.down: set[str] = set()
        self.says: dict[str, str] = {}
        self._ports = count(40000)

    def state(self) -> Any:
        forwards = {id_: list(one["forwards"]) for id_, one in self.netdevs.items()}
        return super().state(), forwards, set(self.down)

    def plug(self, id_: str, netdev: str, *forwards: tuple[str, str, int, int]) -> None:
        self.netdevs[netdev] = {"type": "user", "forwards": list(forwards)}
        self.devices[id_] = {
            "driver": "virtio-net-pci", "bus": "port0", "netdev": netdev,
            "mac": "52:54:00:00:00:01",
        }  # fmt: skip

    def release(self, id_: str, *, times: int = 1) -> None:
        super().release(id_, times=times)
        self.down.discard(id_)

    def _device_list_properties(self, typename: str) -> Any:
        if typename == "nonsense":
            raise Refused(f"Device '{typename}' not found")
        names = ["mac", "netdev"] if "net" in typename else ["rng"]
        return [{"name": name, "type": "str"} for name in names]

    def _netdev_add(self, id: str, type: str, hostfwd: Any = (), **_: Any) -> None:
        if id in self.netdevs:
            raise Refused(f"Duplicate ID '{id}'")
        made: dict[str, Any] = {"type": type, "forwards": []}
        for rule in hostfwd:
            problem = self._forward(made, rule["str"])
            if problem:
                raise Refused(problem.strip())
        self.netdevs[id] = made

    def _netdev_del(self, id: str) -> None:
        if id not in self.netdevs:
            raise Refused(f"Device '{id}' not found")
        assert id not in {one.get("netdev") for one in self.devices.values()}
        del self.netdevs[id]

    def _set_link(self, name: str, up: bool) -> None:
        if name not in self.devices:
            raise Refused(f"Device '{name}' not found")
        (self.down.discard if up else self.down.add)(name)

    def _human_monitor_command(self, command_line: str) -> str:
        verb, *words = command_line.split()
        if verb in self.says:
            return self.says.pop(verb)
        if command_line == "info network":
            return "".join(self._clients())
        if command_line == "info usernet":
            return "".join(self._sockets())
        if words[0] not in self.netdevs:
            return f"unrecognized netdev id '{words[0]}'\r\n"
        if verb == "hostfwd_add":
            return self._forward(self.netdevs[words[0]], words[1])
        protocol, address, port = words[1].split(":")
        forwards = self.netdevs[words[0]]["forwards"]
        for one in forwards:
            if one[:3] == (protocol, address, int(port)):
                forwards.remove(one)
                return f"host forwarding rule for {words[1]} removed\r\n"
        return f"host forwarding rule for {words[1]} not found\r\n"

    def _forward(self, netdev: dict[str, Any], rule: str) -> str:
        protocol, address, port, guest = rule.split(":")
        number = int(port.rstrip("-")) or next(self._ports)
        every = [one for each in self.netdevs.values() for one in each["forwards"]]
        if (protocol, address, number) in {one[:3] for one in every}:
            return f"Could not set up host forwarding rule '{rule}'\r\n"
        netdev["forwards"].append((protocol, address, number, int(guest)))
        return ""

    def _clients(self) -> Any:
        peers = set()
        for id_, one in self.devices.items():
            if "netdev" not in one:
                continue
            peers.add(one["netdev"])
            type_ = self.netdevs[one["netdev"]]["type"]
            yield f"{id_}: index=0,type=nic,model={one['driver']},macaddr={one['mac']}"
            yield f"\r\n \\ {one['netdev']}: index=0,type={type_},net=10.0.2.0\r\n"
        for id_, one in self.netdevs.items():
            if id_ not in peers:
                yield f"{id_}: index=0,type={one['type']},net=10.0.2.0\r\n"

    def _sockets(self) -> Any:
        for id_, netdev in self.netdevs.items():
            yield f"Hub -1 ({id_}):\r\n{HEAD}\r\n"
            for protocol, address, port, guest in netdev["forwards"]:
                shown = "*" if address == "0.0.0.0" else address
                state = f"{protocol.upper()}[HOST_FORWARD]"
                yield f"  {state}  11  {shown:>15} {port:5}       10.0.2.15 {guest:5}"
                yield "     0     0\r\n"
