"""Arguments for QEMU of the user's own, and what else is done with their VMs."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.guest.conftest import Home
from tests.unit.disk_images import qcow2


def drive(path: Path, more: str = "") -> list[str]:
    return ["--qemu-arg=-drive", f"--qemu-arg=if=virtio,file={path}{more}"]


def test_a_drive_that_qemuctl_does_not_know_is_left_out_of_nothing(
    here: Home, tmp_path: Path
) -> None:
    """Each command gives the same answer, on and off, and has done nothing."""
    vars_ = qcow2(tmp_path / "vars.qcow2", bytes(128 * 1024))
    here.run(
        "create", "web", "--image", "tiny", "--disk", "size=1M,format=qcow2",
        "--memory", "192M", "--nic", "none", *drive(vars_, ",format=qcow2"),
    )  # fmt: skip
    snapshot = [["snapshot", "create", "web", "one"], ["snapshot", "rm", "web", "one"],
                ["snapshot", "revert", "web", "one"]]  # fmt: skip
    off = [["clone", "web", "new"], ["export", "web", tmp_path / "web.tar"]]
    on = [["save", "web", tmp_path / "web.state"],
          ["migrate", "web", f"local:{tmp_path}/there"]]  # fmt: skip
    for commands, state in ((snapshot + off, "off"), (snapshot + on, "paused")):
        if state == "paused":
            here.run("start", "web", "--paused")
        for words in commands:
            said = here.words(*words, check=1)
            assert "its extra_args bring a drive that it writes to" in said, words
            assert f"-drive if=virtio,file={vars_}" in said
            assert "qemuctl edit web" in said
        assert f" {state} " in here.text("ls", "-a")
    here.run("kill", "web")
    assert here.text("ls", "-a", "-q") == "web\n"
    assert not list(tmp_path.glob("web.*"))
    # One that is only read is no obstacle.
    here.run("create", "read", "--disk", "size=1M",
             *drive(vars_, ",format=qcow2,readonly=on"))  # fmt: skip
    here.run("clone", "read", "copy")


# A Multiboot kernel that writes the first module's string to the serial port. Its
# header tells where it is loaded and begins; then: mov eax,[ebx+24]; mov esi,[eax+8];
# mov dx,0x3f8; and until the string's end: lodsb; out dx,al; then hlt.
_AT, _MAGIC, _FLAGS = 0x100000, 0x1BADB002, 0x10000
_HEADER = struct.pack(
    "<8I", _MAGIC, _FLAGS, -(_MAGIC + _FLAGS) & 0xFFFFFFFF, _AT, _AT, 0, 0, _AT + 32
)
_CODE = bytes.fromhex("8b4318 8b7008 66baf803 ac ee 84c0 75fa f4 ebfd")


def test_multiboot_modules_are_passed_on_by_arguments_alone(
    here: Home, tmp_path: Path
) -> None:
    (tmp_path / "kernel").write_bytes(_HEADER + _CODE)
    (tmp_path / "a").write_text("module")
    modules = f"{tmp_path}/a x y,{tmp_path}/a"
    spec = tmp_path / "web.yaml"
    boot = f"name: web\nmemory: 64M\nnics: []\nboot: {{kernel: {tmp_path}/kernel"
    for initrd in ("a x y,a", modules):
        spec.write_text(f"{boot}, initrd: '{initrd}'}}\n")
        for command in (["spec", "check", spec], ["create", "-f", spec]):
            said = here.words(*command, check=1)
            assert "web.yaml:4: boot.initrd: no such file: " in said
            assert "extra_args: [-initrd, '/DIR/FILE ARGUMENTS,/DIR/FILE']" in said
    spec.write_text(f"{boot}}}\nextra_args: [-initrd, '{modules}']\n")
    here.run("create", "-f", spec)
    here.run("start", "web")
    here.run("wait", "web", "--for", "serial:a x y")
    here.run("kill", "web")
