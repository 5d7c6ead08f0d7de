"""What the spec promises, seen from inside a Linux guest on each machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import qemuctl
from qemuctl.errors import QemuctlError
from qemuctl.spec import parse_spec

pytestmark = pytest.mark.usefixtures("home", "qemu")

LOOK = """
for disk in /sys/block/[vs]d* /sys/block/sr*; do
  [ -e "$disk" ] && echo "${disk##*/} $(cat $disk/size) $(cat $disk/ro)"
done
for nic in /sys/class/net/e*; do echo "${nic##*/} $(cat $nic/address)"; done
nproc
"""
# The guest asks for its address beside all else, so this may come a bit later.
ADDRESS = "until ip -4 addr show eth0 | grep -q 10.0.2.15; do usleep 50000; done"


TOTAL = "awk '/MemTotal/ { print $2 }' /proc/meminfo"


async def look(spec: qemuctl.Spec) -> list[str]:
    async with qemuctl.launch(spec) as vm:
        await vm.wait_ready()
        if spec.nics:
            await vm.agent.run(["sh", "-c", ADDRESS], timeout=60)
        result = await vm.agent.run(["sh", "-c", LOOK])
        report = await vm.power.stop()
    assert result.ok, result.stderr
    assert report is not None
    assert report.outcome.text == "stopped by the guest"
    return result.text.splitlines()


async def test_q35_with_disks_on_every_bus(tmp_path: Path) -> None:
    iso = tmp_path / "a, b.iso"
    iso.write_bytes((bytes(16 * 2048) + b"\1CD001").ljust(64 * 1024, b"\0"))
    found = await look(
        parse_spec(f"""
name: q
image: tiny
memory: 256M
cpu: {{count: 2}}
disks:
  - {{size: 1M}}
  - {{size: 2M, bus: scsi, format: raw}}
  - {{size: 3M, bus: sata}}
cdrom: {json.dumps(str(iso))}
nics:
  - {{mac: "52:54:00:00:00:01"}}
  - {{model: e1000e, mac: "52:54:00:00:00:02", restrict: true}}
""")
    )
    sizes = sorted(line.split()[1] for line in found if line.startswith(("vd", "sd")))
    assert sizes == ["2048", "4096", "6144"]
    assert "sr0 128 0" in found or "sr0 128 1" in found
    assert sorted(x.split()[1] for x in found if x.startswith("e")) == [
        "52:54:00:00:00:01",
        "52:54:00:00:00:02",
    ]
    assert found[-1] == "2"


async def test_pc_with_ide_and_a_read_only_disk(tmp_path: Path) -> None:
    disk = tmp_path / "ro.raw"
    disk.write_bytes(bytes(1024 * 1024))
    found = await look(
        parse_spec(f"""
name: p
image: tiny
memory: 256M
machine: pc
disks:
  - {{size: 3M, bus: ide}}
  - {{path: {disk}, readonly: true}}
nics: [{{model: e1000}}]
""")
    )
    assert "vda 2048 1" in found
    assert "sda 6144 0" in found
    assert any(line.startswith("eth0 52:54:00:") for line in found)


async def test_microvm_has_disk_and_card() -> None:
    found = await look(
        parse_spec("""
name: m
image: tiny
memory: 256M
machine: microvm
disks: [{size: 1M}]
""")
    )
    assert "vda 2048 0" in found
    assert any(line.startswith("eth0") for line in found)


async def test_there_is_room_for_hot_plug_and_the_guest_takes_it() -> None:
    spec = parse_spec("""
name: h
image: tiny
cpu: {count: 1, max: 2, hypervisor: vmware}
memory: {size: 256M, max: 1G, slots: 2}
nics: []
""")
    async with qemuctl.launch(spec) as vm:
        await vm.wait_ready()
        before = int((await vm.agent.run(["sh", "-c", TOTAL])).text)
        spare = (await vm.command("query-hotpluggable-cpus"))[0]
        assert "qom-path" not in spare
        await vm.command(
            "device_add", {"driver": spare["type"], "id": "cpu1", **spare["props"]}
        )
        await vm.command(
            "object-add",
            {"qom-type": "memory-backend-ram", "id": "m1", "size": 128 * 1024 * 1024},
        )
        await vm.command(
            "device_add", {"driver": "pc-dimm", "id": "d1", "memdev": "m1"}
        )
        script = f"""
until [ "$(nproc)" = 2 ]; do usleep 50000; done
until [ $({TOTAL}) -gt $(({before} + 120000)) ]; do usleep 50000; done
"""
        assert (await vm.agent.run(["sh", "-c", script], timeout=60)).ok


async def test_two_vms_see_each_other_over_a_socket(tmp_path: Path) -> None:
    wire = tmp_path / "wire.sock"
    one = parse_spec(
        f"name: a\nimage: tiny\nmemory: 256M\nnics: [{{type: socket, listen: {wire}}}]"
    )
    two = parse_spec(
        f"name: b\nimage: tiny\nmemory: 256M\nnics: [{{type: socket, connect: {wire}}}]"
    )
    async with qemuctl.launch(one) as a, qemuctl.launch(two) as b:
        await asyncio.gather(a.wait_ready(), b.wait_ready())
        for vm, address in ((a, "10.1.1.1/24"), (b, "10.1.1.2/24")):
            script = f"ip addr add {address} dev eth0; ip link set eth0 up"
            assert (await vm.agent.run(["sh", "-c", script])).ok
        assert (await b.agent.run(["ping", "-c", "3", "10.1.1.1"], timeout=60)).ok


async def test_an_image_of_ones_own_gets_an_overlay_and_a_screen(
    tmp_path: Path,
) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(1024 * 1024))
    spec = qemuctl.Spec(name="v", image=str(base), nics=(), display={"type": "vnc"})
    async with qemuctl.launch(spec) as vm:
        assert (await vm.command("query-vnc"))["enabled"] is True
        assert vm.paths.vnc_socket.is_socket()
        nodes = await vm.command("query-named-block-nodes")
        assert any(str(base) in node["file"] and node["ro"] for node in nodes)


async def test_a_kernel_and_initrd_of_ones_own_boot() -> None:
    from qemuctl.image import build_tiny

    image = await build_tiny()
    spec = qemuctl.Spec(
        name="k",
        memory={"size": "256M"},
        nics=(),
        boot={
            "kernel": str(image.folder / "bzimage"),
            "initrd": str(image.initrd),
            "cmdline": "console=ttyS0 quiet qemuctl.hostname=mine",
        },
    )
    async with qemuctl.launch(spec) as vm:
        await vm.wait_ready()
        assert (await vm.agent.run(["uname", "-n"])).text == "mine"


async def test_a_kernel_for_tiny_brings_its_modules_or_says_what_it_lacks(
    tmp_path: Path,
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"not a kernel")
    spec = qemuctl.Spec(name="k", image="tiny", boot={"kernel": str(kernel)})
    with pytest.raises(QemuctlError, match="could not be built"):
        async with qemuctl.launch(spec):
            pass
