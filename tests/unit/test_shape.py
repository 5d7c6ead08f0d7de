"""A machine's elements, placed where another machine has them."""

from __future__ import annotations

import json

import pytest

from qemuctl.cmdline.blockdev import FileNode, FormatNode
from qemuctl.cmdline.devices import Nic, ScsiDevice, VirtioBlk, VirtSerialPort
from qemuctl.cmdline.layout import root_port
from qemuctl.cmdline.machine import Element
from qemuctl.cmdline.netdev import UserNetdev
from qemuctl.cmdline.options import MachineOption, Smp
from qemuctl.cmdline.shape import Module, Shape, Slot, exact, shaped
from qemuctl.spec import parse_spec

EMPTY = Shape(machine="pc-q35-7.2", accel="tcg", cpu_model=None, slots={})
DISK = [
    FileNode(driver="file", node_name="a-file", filename="/a"),
    FormatNode(driver="qcow2", node_name="a", file="a-file"),
    VirtioBlk(driver="virtio-blk-pci", id="a", bus="port0", addr="0x0", drive="a"),
]
CARD = [
    UserNetdev(id="net0"),
    Nic(driver="virtio-net-pci", id="nic0", bus="port1", addr="0x0", netdev="net0",
        mac="52:54:00:00:00:01"),
]  # fmt: skip


def line(elements: list[Element], shape: Shape) -> list[str]:
    words = [
        word for element in shaped(elements, shape) for word in element.arguments()
    ]
    assert words[:2] == ["-incoming", "defer"]
    return words[2:]


def devices(elements: list[Element], shape: Shape) -> list[dict[str, object]]:
    words = line(elements, shape)
    switches, values = words[::2], words[1::2]
    pairs = zip(switches, values, strict=True)
    return [json.loads(value) for switch, value in pairs if switch == "-device"]


def test_what_has_gone_leaves_no_back_end() -> None:
    assert line([*DISK, *CARD], EMPTY) == []
    kept = Shape(**vars(EMPTY) | {"slots": {"nic0": Slot(bus="port1", addr="0x0.0x0")}})
    assert len(line([*DISK, *CARD], kept)) == 4
    assert [each["id"] for each in devices([*DISK, *CARD], kept)] == ["nic0"]


def test_a_device_is_where_it_was() -> None:
    scsi = ScsiDevice(driver="scsi-hd", id="b", bus="scsi0.0", scsi_id=0, drive="b")
    port = VirtSerialPort(id="agent", bus="vserial.0", chardev="agent", name="x")
    slots = {
        "a": Slot(bus="port5", addr="0x0.0x0"),
        "b": Slot(bus="scsi0.0", scsi_id=4),
    }
    shape = Shape(**vars(EMPTY) | {"slots": slots, "others": frozenset({"agent"})})
    disk, second, agent = devices([*DISK, scsi, port], shape)
    assert (disk["bus"], disk["addr"]) == ("port5", "0x0.0x0")
    assert second["scsi-id"] == 4
    assert agent["bus"] == "vserial.0"


def test_there_are_as_many_ports_as_there_were() -> None:
    spec_has = [root_port(index) for index in range(3)]
    for ports in (2, 3, 5):
        found = devices([*spec_has], Shape(**vars(EMPTY) | {"ports": ports}))
        assert [each["id"] for each in found] == [f"port{n}" for n in range(ports)]


def test_processors_that_came_later_do_so_again() -> None:
    extra = {"driver": "max-x86_64-cpu", "id": "cpu-2", "socket-id": 2}
    shape = Shape(**vars(EMPTY) | {"first_cpus": 2, "cpus": (extra,)})
    for smp in (Smp(cpus=3, maxcpus=4), Smp(cpus=3, maxcpus=None)):
        most = smp.maxcpus or 3
        assert line([smp], shape)[:2] == ["-smp", f"cpus=2,maxcpus={most}"]
        assert devices([smp], shape) == [extra]
    assert line([Smp(cpus=2)], shape)[:2] == ["-smp", "cpus=2"]


@pytest.mark.parametrize("wanted", [None, False])
def test_the_disk_controller_is_there_if_it_was(wanted: bool | None) -> None:
    option = MachineOption(type="pc-q35-7.2", sata=wanted)
    without = Shape(**vars(EMPTY) | {"sata": False})
    assert line([option], EMPTY) == ["-machine", "pc-q35-7.2"]
    assert line([option], without) == ["-machine", "pc-q35-7.2,sata=off"]


def test_a_module_has_its_back_end_first() -> None:
    module = Module(id="dimm0", memdev="dimm0-mem", size=1 << 28, addr=1 << 32, slot=1)
    words = line([], Shape(**vars(EMPTY) | {"modules": (module,)}))
    assert words[0::2] == ["-object", "-device"]
    assert json.loads(words[1])["id"] == json.loads(words[3])["memdev"] == "dimm0-mem"


def test_the_spec_says_exactly_what_the_machine_was() -> None:
    spec = parse_spec("name: web\ncpu: {count: 2, model: host}\n")
    found = exact(spec, EMPTY)
    assert (found.machine, found.accel) == ("pc-q35-7.2", "tcg")
    assert (found.cpu.count, found.cpu.model) == (2, None)
