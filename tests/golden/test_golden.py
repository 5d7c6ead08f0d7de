"""Each NAME.yaml becomes the line in NAME.argv.

``QEMUCTL_UPDATE_GOLDEN=1 pytest tests/golden`` writes the lines anew; read the
difference before you keep it. ``qemu-7.2.json`` is what a real QEMU 7.2
answered, cut down. A template and a fork of it are the same spec with another
memory; ``fork-guarded`` is what a QEMU gets that can open it for reading only;
``shaped`` goes on with the state of a machine that was changed while it ran.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from qemuctl.cmdline import argv, build, format_argv
from qemuctl.cmdline.ram import RamFile
from qemuctl.cmdline.shape import Grown, Module, Shape, Slot, exact
from qemuctl.host import Accel, Host
from qemuctl.host.discovery import from_json
from qemuctl.paths import VmPaths
from qemuctl.spec import Spec, parse_spec

HERE = Path(__file__).parent
BINARY = from_json(
    Path("/usr/bin/qemu-system-x86_64"), (HERE / "qemu-7.2.json").read_bytes()
)
KVM = Accel(kind="kvm", reason="for the test", cpu_model="host")
TEMPLATE = Path("/home/ann/.local/share/qemuctl/templates/db/0123abcd/ram")
UUID = "8d7f3ce4-7c0f-4a52-8c3a-9b1c0d8c9c2e"
RAM = {
    "template": RamFile(path=TEMPLATE, shared=True),
    "fork": RamFile(path=TEMPLATE, shared=False, uuid=UUID),
    "fork-guarded": RamFile(path=TEMPLATE, shared=False, uuid=UUID),
}
# One disk came into a later port, the first card has gone, and memory and a
# processor were added.
SHAPES = {
    "shaped": Shape(
        machine="pc-q35-6.2",
        accel="tcg",
        cpu_model="max",
        slots={
            **{
                f"port{n}": Slot(bus="pcie.0", addr=f"{16 + n // 8:#x}.{n % 8:#x}")
                for n in range(9)
            },
            "vserial": Slot(bus="pcie.0", addr="0x3.0x0"),
            "rng": Slot(bus="pcie.0", addr="0x4.0x0"),
            "balloon": Slot(bus="pcie.0", addr="0x5.0x0"),
            "nic1": Slot(bus="port1", addr="0x0.0x0"),
            "scsi0": Slot(bus="port4", addr="0x0.0x0"),
            "disk0": Slot(bus="port2", addr="0x0.0x0"),
            "late": Slot(bus="port7", addr="0x0.0x0"),
            "slow": Slot(bus="scsi0.0", scsi_id=3),
            "vmem": Slot(bus="port5", addr="0x0.0x0"),
        },
        ports=9,
        cpus=(
            {
                "driver": "max-x86_64-cpu",
                "id": "cpu-1-0-0-0",
                "socket-id": 1,
                "die-id": 0,
                "core-id": 0,
                "thread-id": 0,
            },
        ),
        modules=(
            Module(id="dimm0", memdev="dimm0-mem", size=1 << 28, addr=1 << 32, slot=0),
        ),
        grown=Grown(
            id="vmem",
            memdev="vmem-mem",
            size=1 << 30,
            memaddr=5 << 30,
            requested_size=1 << 29,
        ),
        others=frozenset({"pvpanic", "agent", "copy", "dimm0", "cpu-1-0-0-0"}),
    )
}
TCG = Accel(kind="tcg", reason="for the test", cpu_model="max")


def paths_of(spec: Spec) -> VmPaths:
    if spec.name.startswith("odd"):
        return VmPaths(
            state=Path('/home/o\'hara, "ann"/стан ü') / spec.name,
            run=Path('/run/o\'hara, "ann"/стан ü') / spec.name,
        )
    return VmPaths(
        state=Path("/home/ann/.local/state/qemuctl/vms") / spec.name,
        run=Path("/run/user/1000/qemuctl") / spec.name,
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("*.yaml")))
def test_a_spec_becomes_exactly_this_line(name: str) -> None:
    spec = parse_spec((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    binary = replace(BINARY, memory_file=frozenset(["rom"] * (name == "fork-guarded")))
    host = Host(binary=binary, accel=KVM if spec.accel == "kvm" else TCG)
    if (shape := SHAPES.get(name)) is not None:
        spec = exact(spec, shape)
    machine = build(spec, paths_of(spec), host, RAM.get(name), shape)
    line = format_argv(argv(machine)) + "\n"
    golden = HERE / f"{name}.argv"
    if os.environ.get("QEMUCTL_UPDATE_GOLDEN") == "1":
        golden.write_text(line, encoding="utf-8")
    assert line == golden.read_text(encoding="utf-8")


def test_no_golden_line_has_lost_its_spec() -> None:
    lines = {path.stem for path in HERE.glob("*.argv")}
    assert lines == {path.stem for path in HERE.glob("*.yaml")}
