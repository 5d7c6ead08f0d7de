"""Where `ssh` finds a guest's ssh server, of which a banner on port 22 is enough."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import Any

from tests.guest.conftest import Home
from tests.guest.disks import inside
from tests.guest.hosts import Host, hosts  # noqa: F401 (a fixture)

# One connection after the other, and an end with the guest's.
GREETS = (
    "(while :; do echo SSH-2.0-tiny | nc -l -p 22 >/dev/null; done) >/dev/null 2>&1"
)


def settings(home: Home, name: str) -> dict[str, Any]:
    lines = home.text("ssh-config", name).splitlines()[1:]
    return dict(line.split(maxsplit=1) for line in lines)


def greeting(at: dict[str, Any]) -> bytes:
    where = at["HostName"], int(at["Port"])
    with socket.create_connection(where, timeout=60) as connection:
        return connection.recv(100)


def test_a_forward_follows_a_guest_with_an_address_of_its_own(
    shared: Home, web: str
) -> None:
    inside(shared, web, f"{GREETS} &")
    before = settings(shared, web)
    assert greeting(before) == b"SSH-2.0-tiny\n"
    forwards = json.loads(shared.text("info", web, "--json"))["forwards"]
    inside(shared, web, "ip -4 addr flush dev eth0; ip addr add 10.0.2.77/24 dev eth0")
    after = settings(shared, web)
    assert after == before
    assert greeting(after) == b"SSH-2.0-tiny\n"
    # It is the forward that it was, for whoever looks.
    info = json.loads(shared.text("info", web, "--json"))
    assert (info["forwards"], info["differences"]) == (forwards, {})
    shared.run("nic", "forward", "rm", web, ":22", "--live")


def test_a_forward_of_extra_args_is_seen(here: Home) -> None:
    nic = "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:0-:22"
    here.run(
        "create", "own", "--image", "tiny", "--memory", "192M", "--nic", "none",
        "--qemu-arg=-nic", f"--qemu-arg={nic}",
    )  # fmt: skip
    here.run("start", "own", "--paused")
    (forward,) = json.loads(here.text("info", "own", "--json"))["forwards"]
    assert forward in here.text("ls")
    assert forward == f"127.0.0.1:{settings(here, 'own')['Port']}->22"
    here.run("kill", "own")


def test_a_guest_on_a_tap_interface_is_reached_at_the_address_that_its_agent_tells(
    hosts: tuple[Host, Host],  # noqa: F811
) -> None:
    a, _ = hosts
    for words in (
        "tuntap add tap0 mode tap", "addr add 192.0.2.1/24 dev tap0", "link set tap0 up"
    ):  # fmt: skip
        subprocess.run(a.enter("ip", *words.split()), check=True, timeout=60)
    tap = "tap,ifname=tap0"
    a.run("create", "lan", "--image", "tiny", "--memory", "192M", "--nic", tap)
    a.run("start", "lan", "--wait")
    said = a.words("ssh-config", "lan", check=1)
    assert "its agent tells no address that this host reaches" in said
    up = "ip addr add 198.51.100.2/24 dev eth0; ip link set eth0 up"
    inside(a, "lan", f"{up}; {GREETS} &")
    assert a.run("ssh-config", "lan", check=None).returncode == 1
    inside(a, "lan", "ip addr add 192.0.2.2/24 dev eth0")
    at = settings(a, "lan")
    assert (at["HostName"], at["Port"]) == ("192.0.2.2", "22")
    # The banner is there; what follows it is no ssh.
    a.run("ssh", "lan", "true", check=255)
    a.run("kill", "lan")
