"""What a spec becomes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuctl.cmdline import argv, build
from qemuctl.cmdline.layout import HOTPLUG_PORTS
from qemuctl.cmdline.mac import default_mac
from qemuctl.errors import HostError, SpecError
from qemuctl.host import Accel, Host
from qemuctl.host.discovery import from_json
from qemuctl.paths import VmPaths
from qemuctl.spec.model import Spec

RECORDED = Path(__file__).parent.parent / "golden" / "qemu-7.2.json"
BINARY = from_json(Path("/usr/bin/qemu-system-x86_64"), RECORDED.read_bytes())
TCG = Accel(kind="tcg", reason="for the test", cpu_model="max")
HOST = Host(binary=BINARY, accel=TCG)
PATHS = VmPaths(state=Path("/state/vm"), run=Path("/run/vm"))
DISK = {"path": "/d.raw"}


def disks(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"path": f"/{index}.raw", **fields} for index in range(count)]


def line(host: Host = HOST, **fields: Any) -> list[str]:
    return argv(build(Spec.model_validate({"name": "vm", **fields}), PATHS, host))


def values(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def objects(words: list[str], option: str) -> dict[str, dict[str, Any]]:
    """The JSON values of ``option`` by id or node name."""
    found = [json.loads(value) for value in values(words, option)]
    return {entry.get("id") or entry["node-name"]: entry for entry in found}


def lacking(**fields: frozenset[str]) -> Host:
    """The host, with a binary that lacks what ``fields`` name."""
    cut = {name: getattr(BINARY, name) - gone for name, gone in fields.items()}
    return Host(binary=replace(BINARY, **cut), accel=TCG)


@pytest.mark.parametrize(
    ("alias", "exact"),
    [
        ("q35", "pc-q35-7.2"),
        ("pc", "pc-i440fx-7.2"),
        ("pc-q35-6.2", "pc-q35-6.2"),
        ("microvm", "microvm"),
    ],
)
def test_the_machine_is_the_exact_one(alias: str, exact: str) -> None:
    (value,) = values(line(machine=alias), "-machine")
    assert value.split(",")[0] == exact


def test_a_machine_that_the_binary_lacks_is_named() -> None:
    with pytest.raises(HostError, match=r"pc-q35-2\.4.*version 7\.2"):
        line(machine="pc-q35-2.4")


@pytest.mark.parametrize(
    ("fields", "off"),
    [
        ({}, True),
        ({"disks": [DISK]}, True),
        ({"disks": [DISK, {"path": "/e.raw", "bus": "sata"}]}, False),
        ({"cdrom": ""}, False),
        ({"extra_args": ["-device", "ide-hd"]}, False),
        ({"machine": "pc"}, False),
        ({"machine": "microvm"}, False),
    ],
)
def test_q35_has_its_disk_controller_only_when_used(
    fields: dict[str, Any], off: bool
) -> None:
    (value,) = values(line(**fields), "-machine")
    assert value.endswith(",sata=off") == off


def test_kvm_brings_no_translation_cache() -> None:
    kvm = Accel(kind="kvm", reason="", cpu_model="host")
    words = line(Host(binary=BINARY, accel=kvm))
    assert values(words, "-accel") == ["kvm"]
    assert values(words, "-cpu") == ["host"]


def test_without_a_default_model_qemu_chooses() -> None:
    kvm = Accel(kind="kvm", reason="", cpu_model=None)
    assert "-cpu" not in line(Host(binary=BINARY, accel=kvm))
    words = line(Host(binary=BINARY, accel=kvm), cpu={"model": "EPYC,-x2apic"})
    assert values(words, "-cpu") == ["EPYC,-x2apic"]


@pytest.mark.parametrize(
    ("memory", "value"),
    [
        ("512M", "size=512M"),
        ({"size": "1G", "max": "1G"}, "size=1024M"),
        ({"size": "1G", "max": "2G"}, "size=1024M,slots=8,maxmem=3072M"),
        ({"size": "1G", "max": "2G", "slots": 3}, "size=1024M,slots=3,maxmem=3072M"),
    ],
)
def test_memory_leaves_room_only_when_asked(memory: object, value: str) -> None:
    assert values(line(memory=memory), "-m") == [value]


def test_a_screen_or_a_kernel_keeps_the_firmware_off_the_serial_port() -> None:
    def machine(**fields: Any) -> str:
        return values(line(**fields), "-machine")[0]

    assert "graphics=off" in machine()
    assert "graphics" not in machine(display="vnc")
    assert "graphics" not in machine(boot={"kernel": "/k"})
    assert "graphics" not in machine(serial=False)


@pytest.mark.parametrize(
    ("display", "option", "value"),
    [
        (
            {"type": "vnc", "address": "127.0.0.1:5901"},
            "-vnc",
            "127.0.0.1:1,password=on",
        ),
        (
            {"type": "vnc", "address": "127.0.0.1:5901", "password": False},
            "-vnc",
            "127.0.0.1:1",
        ),
        ({"type": "vnc", "address": "0.0.0.0:5901"}, "-vnc", "0.0.0.0:1,password=on"),
        (
            {"type": "spice", "address": "127.0.0.1:5930", "password": False},
            "-spice",
            "addr=127.0.0.1,port=5930,disable-ticketing=on",
        ),
        (
            {"type": "spice", "address": "127.0.0.1:5930", "password": True},
            "-spice",
            "addr=127.0.0.1,port=5930",
        ),
    ],
)
def test_a_locked_screen_is_closed_from_the_start(
    display: dict[str, object], option: str, value: str
) -> None:
    assert values(line(display=display), option) == [value]


def test_a_kernel_gets_a_console_only_with_a_serial_port() -> None:
    assert values(line(boot={"kernel": "/k"}), "-append") == ["console=ttyS0"]
    assert values(line(boot={"kernel": "/k"}, serial=False), "-append") == [""]


def test_a_disk_of_a_size_is_in_the_state_folder() -> None:
    nodes = objects(line(disks=[{"size": "1G"}]), "-blockdev")
    assert nodes["disk0-file"]["filename"] == "/state/vm/disks/disk0.qcow2"
    assert nodes["disk0"]["driver"] == "qcow2"


@pytest.mark.parametrize(
    ("mode", "write_cache", "direct", "no_flush"),
    [
        ("none", "on", True, False),
        ("writeback", "on", False, False),
        ("writethrough", "off", False, False),
        ("directsync", "off", True, False),
        ("unsafe", "on", False, True),
    ],
)
@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata"])
def test_a_cache_mode_is_three_flags(
    bus: str, mode: str, write_cache: str, direct: bool, no_flush: bool
) -> None:
    words = line(disks=[{**DISK, "cache": mode, "bus": bus}])
    nodes = objects(words, "-blockdev")
    flags = {"direct": direct, "no-flush": no_flush}
    assert nodes["disk0-file"]["cache"] == nodes["disk0"]["cache"] == flags
    assert objects(words, "-device")["disk0"]["write-cache"] == write_cache


@pytest.mark.parametrize(
    ("path", "driver"),
    [
        ("/dev/sdb", "host_device"),
        ("/dev/shm/a", "file"),
        ("/devices/a", "file"),
    ],
)
def test_a_device_of_the_host_is_opened_as_one(path: str, driver: str) -> None:
    nodes = objects(line(disks=[{"path": path, "format": "raw"}]), "-blockdev")
    assert nodes["disk0-file"]["driver"] == driver


def test_a_cdrom_keeps_its_place_when_disks_come() -> None:
    sata = {**DISK, "bus": "sata"}
    few = objects(line(cdrom="/c.iso", disks=[sata]), "-device")
    many = objects(line(cdrom="/c.iso", disks=disks(5, bus="sata")), "-device")
    assert few["cdrom0"]["bus"] == many["cdrom0"]["bus"] == "ide.2"
    taken = [many[f"disk{index}"]["bus"] for index in range(5)]
    assert taken == ["ide.0", "ide.1", "ide.3", "ide.4", "ide.5"]


def test_a_new_disk_does_not_move_a_network_card() -> None:
    before = objects(line(), "-device")["nic0"]
    after = objects(line(disks=disks(2)), "-device")["nic0"]
    assert before == after


def test_every_plugged_device_has_a_port_of_its_own_and_some_are_free() -> None:
    devices = objects(line(nics=[{}, {}], disks=disks(9)), "-device")
    ports = {key for key in devices if key.startswith("port")}
    taken = [
        entry["bus"]
        for entry in devices.values()
        if str(entry.get("bus")).startswith("port")
    ]
    assert len(taken) == len(set(taken)) == 11
    assert len(ports - set(taken)) == HOTPLUG_PORTS
    for key in ("addr", "chassis", "port"):
        assert len({devices[port][key] for port in ports}) == len(ports)


def test_no_two_devices_share_an_address() -> None:
    everything: dict[str, Any] = {
        "disks": [DISK, *disks(1, bus="scsi"), {"path": "/s.raw", "bus": "sata"}],
        "display": "vnc",
        "cdrom": "/c.iso",
    }
    for machine in ("q35", "pc"):
        devices = objects(line(machine=machine, **everything), "-device").values()
        places = [(entry["bus"], entry["addr"]) for entry in devices if "addr" in entry]
        assert len(places) == len(set(places))


def test_boot_indexes_follow_the_order() -> None:
    words = line(
        boot={"order": ["network", "cdrom"]}, cdrom="/c.iso", disks=[DISK], nics=[{}]
    )
    devices = objects(words, "-device")
    assert devices["nic0"]["bootindex"] == 0
    assert devices["cdrom0"]["bootindex"] == 1
    assert "bootindex" not in devices["disk0"]
    assert values(words, "-boot") == ["strict=on"]


def test_a_disks_own_boot_index_wins() -> None:
    devices = objects(line(disks=[DISK, *disks(1, boot_index=3)]), "-device")
    assert devices["disk1"]["bootindex"] == 3
    assert devices["disk0"]["bootindex"] == 4


def test_a_kernel_leaves_no_boot_indexes() -> None:
    words = line(boot={"kernel": "/k"}, disks=[{**DISK, "boot_index": 0}])
    assert "bootindex" not in objects(words, "-device")["disk0"]


def test_a_card_has_its_network_rom_only_when_it_boots() -> None:
    assert objects(line(), "-device")["nic0"]["romfile"] == ""
    booting = objects(line(boot={"order": ["network"]}), "-device")
    assert "romfile" not in booting["nic0"]


def test_macs_are_stable_and_different() -> None:
    macs = {default_mac(name, index) for name in ("a", "b") for index in (0, 1)}
    assert len(macs) == 4
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in macs)
    assert default_mac("a", 0) == default_mac("a", 0)


def test_a_card_of_type_none_is_no_card() -> None:
    words = line(nics=[{"type": "none"}])
    assert "-netdev" not in words
    assert "nic0" not in objects(words, "-device")


@pytest.mark.parametrize(
    ("fields", "key", "problem"),
    [
        ({"disks": [{**DISK, "bus": "ide"}]}, "disks[0].bus", "need machine: pc"),
        (
            {"machine": "pc", "disks": disks(5, bus="ide")},
            "disks[4].bus",
            "no room for another ide disk",
        ),
        (
            {"disks": disks(6, bus="sata"), "cdrom": "/c"},
            "disks[5].bus",
            "CD-ROM drive included",
        ),
        (
            {"disks": [DISK, *disks(1, bus="sata", readonly=True)]},
            "disks[1].readonly",
            "cannot be read-only",
        ),
        ({"disks": disks(257, bus="scsi")}, "disks[256].bus", "256"),
        ({"disks": disks(60)}, "disks[59].bus", "no slot left"),
        ({"machine": "pc", "disks": disks(15)}, "disks[14].bus", "no slot left"),
        (
            {"machine": "microvm", "disks": [{**DISK, "bus": "scsi"}]},
            "disks[0].bus",
            "microvm has no scsi bus",
        ),
        ({"machine": "microvm", "cdrom": "/c"}, "cdrom", "no CD-ROM drive"),
        ({"machine": "microvm", "display": "vnc"}, "display", "no screen"),
        (
            {"machine": "microvm", "nics": [{"model": "e1000"}]},
            "nics[0].model",
            "no PCI bus",
        ),
        (
            {"machine": "microvm", "memory": {"size": "1G", "max": "2G"}},
            "memory.max",
            "cannot plug memory",
        ),
        (
            {"machine": "microvm", "cpu": {"count": 1, "max": 2}},
            "cpu.max",
            "cannot plug processors",
        ),
        ({"machine": "pc", "cpu": 256}, "cpu.count", "pc-i440fx-7.2 takes 255"),
    ],
)
def test_what_the_machine_cannot_do_names_the_field(
    fields: dict[str, Any], key: str, problem: str
) -> None:
    with pytest.raises(SpecError, match=problem) as caught:
        line(**fields)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("fields", "gone", "message"),
    [
        (
            {},
            {"options": frozenset({"sandbox"})},
            "sandbox needs the option '-sandbox'",
        ),
        ({"display": "spice"}, {"options": frozenset({"spice"})}, "'-spice'"),
        (
            {"display": {"type": "vnc", "vga": "qxl"}},
            {"devices": frozenset({"qxl-vga"})},
            "display.vga needs the device 'qxl-vga'",
        ),
        ({}, {"netdevs": frozenset({"user"})}, r"nics\[0\].type needs the netdev"),
        (
            {"nics": [{"type": "socket", "connect": "/s"}]},
            {"netdevs": frozenset({"stream"})},
            "'stream'",
        ),
        ({"nics": [{"model": "ne3k"}]}, {}, r"nics\[0\].model needs the device 'ne3k'"),
        ({}, {"panic_actions": frozenset({"exit-failure"})}, "on_panic needs"),
        (
            {"cpu": {"model": "pentium9"}},
            {},
            "cpu.model needs the CPU model 'pentium9'",
        ),
        (
            {},
            {"devices": frozenset({"virtio-balloon-pci"})},
            "balloon needs the device",
        ),
        (
            {"disks": [DISK]},
            {"devices": frozenset({"virtio-blk-pci"})},
            r"disks\[0\].bus needs the device",
        ),
    ],
)
def test_what_the_binary_lacks_is_named(
    fields: dict[str, Any], gone: dict[str, frozenset[str]], message: str
) -> None:
    with pytest.raises(HostError, match=message):
        line(lacking(**gone), **fields)


def test_without_the_sandbox_only_when_the_spec_says_so() -> None:
    host = lacking(options=frozenset({"sandbox"}))
    assert "-sandbox" not in line(host, sandbox=False)
