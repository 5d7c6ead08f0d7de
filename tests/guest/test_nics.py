"""Network cards of a VM that runs, as its guest and its users see them."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import HotplugError
from qemuctl.qmp.net import parse_usernet
from qemuctl.spec import Nic
from qemuctl.spec.network import Forward
from qemuctl.vm.attach import attach
from tests.guest.conftest import Home

Json = dict[str, Any]


def parsed(here: Home, *arguments: object, **options: Any) -> Any:
    return json.loads(here.text("nic", *arguments, "--json", **options))


def cards(here: Home, vm: str) -> dict[str, Json]:
    return {row["id"]: row for row in parsed(here, "ls", vm)}


def inside(here: Home, vm: str) -> dict[str, str]:
    """The guest's interfaces: their names by their addresses."""
    script = "cd /sys/class/net; for i in *; do echo $(cat $i/address) $i; done"
    lines = here.text("exec", vm, "--", "sh", "-c", script).splitlines()
    return dict(line.split() for line in lines)


def carrier(here: Home, vm: str, mac: str) -> str:
    path = f"/sys/class/net/{inside(here, vm)[mac]}/carrier"
    return here.text("exec", vm, "--", "cat", path).strip()


def monitor(here: Home, vm: str, line: str) -> str:
    arguments = json.dumps({"command-line": line})
    return here.text("qmp", vm, "human-monitor-command", arguments)


def spec(here: Home, vm: str) -> str:
    return (here.path / "state/vms" / vm / "vm.yaml").read_text()


def everything(here: Home, vm: str) -> tuple[Any, ...]:
    # Connections come and go as they like; forwards do not.
    forwards = parse_usernet(json.loads(monitor(here, vm, "info usernet")))
    return (monitor(here, vm, "info network"), forwards, spec(here, vm))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this host that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_card_comes_and_goes_while_the_guest_runs(shared: Home, web: str) -> None:
    before = spec(shared, web)
    done = parsed(shared, "add", web, "user,forward=:80", "--model", "e1000")
    mac, (address,) = done["mac"], done["forwards"]
    assert (done["id"], done["live"], done["configured"]) == ("nic1", True, True)
    assert inside(shared, web)[mac] == done["guest"]["device"]
    assert address in json.loads(shared.text("info", web, "--json"))["forwards"]
    assert {"id: nic1", "model: e1000", "- :80"} <= {
        line.strip("- ") if "id" in line else line.strip()
        for line in spec(shared, web).splitlines()
    }
    row = cards(shared, web)["nic1"]
    assert (row["model"], row["type"], row["live"]) == ("e1000", "user", True)
    assert row["guest"]["name"] == done["guest"]["device"]
    shared.run("nic", "rm", web, "nic1")
    assert mac not in inside(shared, web)
    assert "nic1" not in cards(shared, web)
    assert "net1" not in monitor(shared, web, "info network")
    assert address not in shared.text("info", web)
    assert spec(shared, web).split("nics:")[1].count("mac") == before.count("mac")


def test_a_card_can_be_of_this_run_or_of_the_next(shared: Home, web: str) -> None:
    before = spec(shared, web)
    live = parsed(shared, "add", web, "--live", "--id", "lan")
    assert (live["live"], live["configured"]) == (True, False)
    assert spec(shared, web) == before
    config = parsed(shared, "add", web, "--config", "--id", "later")
    assert (config["live"], config["configured"]) == (False, True)
    rows = cards(shared, web)
    assert (rows["lan"]["live"], rows["lan"]["configured"]) == (True, False)
    assert (rows["later"]["live"], rows["later"]["configured"]) == (False, True)
    shared.run("nic", "rm", web, "later")
    shared.run("nic", "rm", web, "lan")
    assert cards(shared, web).keys() == {"nic0"}


def test_a_cable_is_pulled_and_the_guest_sees_it(shared: Home, web: str) -> None:
    mac = cards(shared, web)["nic0"]["mac"]
    assert carrier(shared, web, mac) == "1"
    shared.run("nic", "link", web, "nic0", "down", "--live")
    assert carrier(shared, web, mac) == "0"
    row = cards(shared, web)["nic0"]
    assert (row["link"], row["configured_link"]) == ("down", "up")
    assert "link" not in spec(shared, web)
    shared.run("nic", "link", web, "nic0", "up")
    assert carrier(shared, web, mac) == "1"
    assert cards(shared, web)["nic0"]["link"] == "up"


def test_a_forward_leads_into_the_guest_from_one_moment_to_the_next(
    shared: Home, web: str, until: Callable[..., Any]
) -> None:
    script = "mkdir -p /tmp/www; echo hello > /tmp/www/a; httpd -p 8000 -h /tmp/www"
    shared.run("exec", web, "--", "sh", "-c", script)
    done = parsed(shared, "forward", "add", web, ":8000")
    address = done["address"].removesuffix("->8000")
    assert done["address"] in json.loads(shared.text("info", web, "--json"))["forwards"]
    assert ":8000" in spec(shared, web)

    def got() -> bytes:
        with urllib.request.urlopen(f"http://{address}/a", timeout=60) as reply:
            return bytes(reply.read())

    assert until(got, 60) == b"hello\n"
    shared.run("nic", "forward", "rm", web, ":8000")
    host, port = address.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=60)
    assert ":8000" not in spec(shared, web)
    assert done["address"] not in shared.text("info", web)


def test_a_forward_to_ssh_is_found_by_ssh(shared: Home, web: str) -> None:
    """What ssh reads is what live changes have written."""
    shared.run("nic", "forward", "rm", web, ":22", "--live")
    assert "leads to its port 22" in shared.words("ssh-config", web, check=1)
    address = parsed(shared, "forward", "add", web, ":22", "--live")["address"]
    port = address.split("->")[0].split(":")[1]
    assert f"Port {port}" in shared.text("ssh-config", web)


WRONG: list[tuple[list[str], int, str]] = [
    (["add", "web", "--model", "e100"], 1, "it has: e1000"),
    (["add", "web", "--model", "virtio-rng-pci"], 1, "not a network card"),
    (["add", "web", "--id", "nic0"], 1, "the id is in use: nic0"),
    (["add", "web", "--id", "x,y"], 2, "not an id: 'x,y'"),
    (["add", "web", "--id", "net0"], 2, "taken by a part of every VM"),
    (["add", "web", "--mac", "52:54"], 2, "not a MAC address"),
    (["add", "web", "--mac", "01:54:00:00:00:01"], 2, "a multicast MAC address"),
    (["add", "web", "none"], 1, "no card"),
    (["add", "web", "socket,connect=/nowhere"], 1, "nobody listens at /nowhere"),
    (["add", "web", "usr"], 2, "usr"),
    (["add", "web", "--live", "--config"], 2, "only one of them makes sense"),
    (["rm", "web", "nic7"], 1, "there are: nic0"),
    (["rm", "web", "port0"], 1, "no such card"),
    (["link", "web", "nic7", "down"], 1, "there are: nic0"),
    (["link", "web", "nic0", "sideways"], 2, "neither up nor down"),
    (["forward", "add", "web", "nic7", ":1"], 1, "there are: nic0"),
    (["forward", "add", "web", "8.8.8.8:1:1"], 1, "cannot assign"),
    (["forward", "add", "web", "99999:1"], 2, "99999"),
    (["forward", "add", "web", "http"], 2, "not a port forward"),
    (["forward", "rm", "web", "1:1"], 1, "no such forward"),
    (["add", "nobody"], 1, "no such VM"),
]


def test_bad_input_is_explained_and_changes_nothing(shared: Home, web: str) -> None:
    before = everything(shared, web)
    for arguments, status, words in WRONG:
        assert words in shared.words("nic", *arguments, check=status)
        assert spec(shared, web) == before[-1]
    assert everything(shared, web) == before


def test_a_wire_joins_a_card_that_listens_to_one_that_does_not(
    shared: Home, web: str, tmp_path: Path
) -> None:
    wire, file = tmp_path / "wire", tmp_path / "file"
    file.write_text("dear to its user")
    words = shared.words("nic", "add", web, f"socket,listen={file}", check=1)
    assert "something else than a socket" in words
    assert file.read_text() == "dear to its user"
    near = parsed(shared, "add", web, f"socket,listen={wire}", "--live")
    words = shared.words("nic", "add", web, f"socket,listen={wire}", check=1)
    assert "another process listens there" in words
    far = parsed(shared, "add", web, f"socket,connect={wire}", "--live")
    # The guest hears itself through the wire.
    ends = inside(shared, web)
    script = (
        f"ip link set {ends[near['mac']]} up; ip link set {ends[far['mac']]} up; "
        f"until grep -qv '^0$' /sys/class/net/{ends[far['mac']]}/statistics/rx_packets;"
        f" do arping -c 1 -w 1 -I {ends[near['mac']]} 192.0.2.1; done; true"
    )
    shared.run("exec", web, "--", "sh", "-c", script)
    shared.run("nic", "rm", web, far["id"])
    shared.run("nic", "rm", web, near["id"])
    assert not wire.exists()


def test_a_host_port_that_is_taken_changes_nothing(
    shared: Home, web: str, taken: int
) -> None:
    before = everything(shared, web)
    for words in (
        shared.words("nic", "forward", "add", web, f"{taken}:1", check=1),
        shared.words("nic", "add", web, f"user,forward={taken}:1", check=1),
    ):
        assert f"tcp port {taken} of 127.0.0.1: address already in use" in words
        assert "a free one" in words
    assert everything(shared, web) == before


def test_a_full_machine_says_what_makes_room(shared: Home, web: str) -> None:
    for _ in range(4):
        shared.run("nic", "add", web, "--live")
    before = everything(shared, web)
    assert "hotplug_ports: 8" in shared.words("nic", "add", web, check=1)
    assert everything(shared, web) == before
    for id_ in cards(shared, web).keys() - {"nic0"}:
        shared.run("nic", "rm", web, id_)


def test_a_paused_vm_is_left_alone(shared: Home, web: str) -> None:
    shared.run("pause", web)
    assert "qemuctl resume web" in shared.words("nic", "add", web, check=1)
    assert cards(shared, web)["nic0"]["guest"] is None
    shared.run("resume", web)


async def test_the_library_does_it_too(
    shared: Home, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    async with await attach(web) as vm:
        added = await vm.nics.add(Nic(link="down"))
        assert added.guest is not None
        assert added.guest.answer == "seen"
        rows = {row.id: row for row in await vm.nics.list()}
        assert rows[added.id].link == "down"
        forward = Forward(guest_port=9)
        made = await vm.nics.add_forward(forward, id=added.id)
        assert [f.text for f in (await vm.nics.list())[1].forwards] == [made.address]
        assert made.address in vm.record.forwards
        assert (await vm.nics.remove(added.id)).outcome == "removed"
        assert made.address not in vm.record.forwards
        assert vm.record.links_down == []


def test_what_was_changed_is_there_at_the_next_start(shared: Home) -> None:
    shared.run("create", "next", "--image", "tiny", "--memory", "256M")
    assert "the VM is off" in shared.words("nic", "add", "next", "--live", check=1)
    done = parsed(shared, "add", "next", "user,model=e1000e,forward=:80")
    assert (done["live"], done["configured"], done["guest"]) == (False, True, None)
    shared.run("nic", "link", "next", "nic0", "down")
    shared.run("nic", "forward", "add", "next", "nic0", ":22")
    shared.run("start", "next", "--wait", timeout=150)
    rows = cards(shared, "next")
    assert rows["nic1"]["mac"] == done["mac"]
    assert rows["nic0"]["link"] == "down"
    assert carrier(shared, "next", rows["nic0"]["mac"]) == "0"
    assert inside(shared, "next").keys() >= {row["mac"] for row in rows.values()}
    # Each card has its own.
    assert [f["text"].split("->")[1] for f in rows["nic0"]["forwards"]] == ["22"]
    assert [f["text"].split("->")[1] for f in rows["nic1"]["forwards"]] == ["80"]
    shared.run("kill", "next")


def test_a_guest_that_does_not_hear_lets_go_at_its_reset(
    here: Home, boot_sector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest of a boot sector knows nothing of hot plug."""
    path = str(boot_sector).replace(",", ",,")
    here.run("create", "deaf", "--disk", f"path={path}", "--memory", "64M", "-p", ":22")
    here.run("start", "deaf")
    here.run("wait", "deaf", "--for", "serial:ok")
    before = spec(here, "deaf")
    done = here.run("nic", "rm", "deaf", "nic0", "--timeout", "1", "--json", check=3)
    assert json.loads(done.stdout)["outcome"] == "pending"
    assert b"a later command does the rest" in done.stderr
    assert cards(here, "deaf")["nic0"]["leaving"]
    assert "net0" in monitor(here, "deaf", "info usernet")
    assert spec(here, "deaf") == before
    here.run("reset", "deaf")
    assert parsed(here, "rm", "deaf", "nic0")["outcome"] == "removed"
    assert "net0" not in monitor(here, "deaf", "info network")
    assert "->22" not in here.text("info", "deaf")
    assert "nics: []" in spec(here, "deaf")
    added = parsed(here, "add", "deaf", "user,forward=:22")
    assert added["guest"] == {"answer": "no agent", "device": None}
    here.run("kill", "deaf")


def test_a_machine_without_hot_plug_says_so(here: Home, boot_sector: Path) -> None:
    path = str(boot_sector).replace(",", ",,")
    here.run("create", "old", "--machine", "microvm", "--disk", f"path={path}")
    here.run("start", "old")
    assert "machine: q35 has room" in here.words("nic", "add", "old", check=1)
    done = here.run("nic", "rm", "old", "nic0", "--json", check=1)
    assert json.loads(done.stdout)["outcome"] == "refused"
    assert b"--config" in done.stderr
    here.run("kill", "old")


async def test_a_refusal_is_an_exception_with_its_outcome(
    here: Home, boot_sector: Path
) -> None:
    path = str(boot_sector).replace(",", ",,")
    here.run("create", "deaf", "--disk", f"path={path}", "--memory", "64M")
    here.run("start", "deaf")
    async with await attach("deaf") as vm:
        with pytest.raises(HotplugError) as caught:
            await vm.nics.remove("nic0", timeout=0.5)
        assert caught.value.outcome == "pending"
    here.run("kill", "deaf")
