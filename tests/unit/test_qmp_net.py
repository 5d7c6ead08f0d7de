"""What the human monitor says about networks, read."""

from __future__ import annotations

import pytest

from qemuctl.qmp.net import (
    Card,
    HostForward,
    client_names,
    forward_problem,
    hostfwd_remove,
    parse_network,
    parse_usernet,
)

HEAD = "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ"
USERNET = f"""Hub -1 (net0):
{HEAD}
  TCP[ESTABLISHED]   24       127.0.0.1 43377       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  11       127.0.0.1 43377       10.0.2.15    22     0     0
  UDP[HOST_FORWARD]  10               * 43296       10.0.2.15    53     0     0
  ICMP[10 sec]       12       10.0.2.15     8         1.1.1.1     0     0     0
Hub -1 (net-lan):
{HEAD}
  TCP[HOST_FORWARD]  12       127.0.0.1 45389       10.0.2.15    80     0     0
""".replace("\n", "\r\n")
NETWORK = r"""nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:b0:e8:de
 \ net0: index=0,type=user,net=10.0.2.0,restrict=off
nic0: index=1,type=nic,model=virtio-net-pci,macaddr=52:54:00:b0:e8:de
wire: index=0,type=nic,model=e1000,macaddr=52:54:00:05:a9:c5
 \ net-wire: index=0,type=stream,connection error
bare: index=0,type=nic,model=e1000,macaddr=52:54:00:05:a9:c6
netx: index=0,type=tap,ifname=tap0,script=no,downscript=no
""".replace("\n", "\r\n")


def test_forwards_are_told_apart_by_their_cards() -> None:
    ssh, dns, web = parse_usernet(USERNET)
    assert ssh == HostForward(
        netdev="net0", protocol="tcp", address="127.0.0.1", port=43377, guest_port=22,
        guest_address="10.0.2.15",
    )  # fmt: skip
    assert [dns.netdev, web.netdev] == ["net0", "net-lan"]
    texts = ["127.0.0.1:43377->22", "0.0.0.0:43296->53/udp", "127.0.0.1:45389->80"]
    assert [each.text for each in (ssh, dns, web)] == texts
    command = "hostfwd_remove net0 udp:0.0.0.0:43296"
    assert hostfwd_remove(dns).command_line == command


def test_cards_are_read_with_what_they_are_plugged_into() -> None:
    nic, wire, bare = parse_network(NETWORK)
    assert nic == Card(
        id="nic0", model="virtio-net-pci", mac="52:54:00:b0:e8:de", backend="net0",
        type="user",
    )  # fmt: skip
    assert (wire.backend, wire.type) == ("net-wire", "stream")
    assert (bare.backend, bare.type) == (None, None)
    names = {"nic0", "net0", "wire", "net-wire", "bare", "netx"}
    assert client_names(NETWORK) == names


@pytest.mark.parametrize("text", ["", "\r\n", "network: nonsense\r\n"])
def test_what_says_nothing_is_nothing(text: str) -> None:
    assert parse_usernet(text) == []
    assert parse_network(text) == []


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("", None),
        ("host forwarding rule for tcp:127.0.0.1:1 removed\r\n", None),
        (
            "host forwarding rule for tcp:127.0.0.1:1 not found\r\n",
            "host forwarding rule for tcp:127.0.0.1:1 not found",
        ),
        ("unrecognized netdev id 'x'\r\n", "unrecognized netdev id 'x'"),
    ],
)
def test_text_of_a_failure_is_known_from_success(
    reply: str, problem: str | None
) -> None:
    assert forward_problem(reply) == problem
