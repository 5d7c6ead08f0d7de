"""Arguments for QEMU of the user's own: which are refused, and with what advice."""

from __future__ import annotations

import pytest

from qemuctl.errors import SpecError
from qemuctl.spec import parse_spec
from qemuctl.spec.arguments import options, written_drives

REFUSED = {
    # What it would contradict is a key of the spec.
    "name x": "key name", "m 1G": "key memory", "smp 4": "key cpu",
    "cpu host": "key cpu.model", "accel kvm": "key accel", "enable-kvm": "key accel",
    "machine pc": "key machine", "M pc": "key machine", "machine type=pc": "machine",
    "machine accel=kvm": "key accel", "machine hmat=on,memory-backend=m": "key memory",
    "sandbox off": "key sandbox", "kernel k": "boot.kernel", "initrd i": "boot.initrd",
    "append quiet": "boot.cmdline", "boot d": "boot.order", "boot once=d": "boot.once",
    "boot menu=on,order=dc": "boot.order", "cdrom x.iso": "key cdrom",
    "hda x": "key disks", "vnc :1": "key display", "display vnc=:1": "key display",
    "display spice-app": "key display", "spice port=5930": "key display",
    "vga std": "display.vga", "no-reboot": "on_guest_reboot",
    "action reboot=shutdown": "on_guest_reboot", "action panic=none": "on_panic",
    # What would do nothing, or make the VM another thing than it is taken for.
    "snapshot": "it does nothing for disks", "S": "start NAME --paused",
    "incoming tcp:0:4444": "qemuctl restore", "loadvm a": "snapshot revert",
    "daemonize": "away from its keeper", "pidfile /tmp/pid": "qemuctl info",
    "preconfig": "nobody sends", "readconfig f": "not be checked",
    "writeconfig f": "qemuctl argv", "no-shutdown": "would not be off",
    "action shutdown=pause": "would not be off", "chroot /tmp": "not find",
    "run-with chroot=/tmp": "not find", "runas nobody": "as that user",
    "run-with async-teardown=on,user=nobody": "as that user",
    "run-with exit-with-parent=on": "owns the VM", "version": "print something",
    "help": "print something", "h": "print something", "dump-vmstate f": "print",
    # There is no terminal.
    "nographic": "no terminal", "display curses": "no terminal",
    "monitor stdio": "no terminal", "serial stdio": "no terminal",
    "serial mon:stdio": "no terminal", "qmp stdio": "no terminal",
    "chardev stdio,id=x": "no terminal", "chardev id=x,backend=stdio": "no terminal",
    "debugcon stdio": "no terminal", "parallel stdio": "no terminal",
    # Ids of the VM's own parts.
    "device edu,id=nic0": "taken by a part of the VM: nic0",
    "device {\"driver\":\"edu\",\"id\":\"port0\"}": "VM: port0",
    "netdev user,id=net0": "VM: net0", "netdev user,id=net-late": "VM: net-late",
    "object rng-builtin,id=rng0": "VM: rng0", "chardev null,id=owner": "VM: owner",
    "drive if=none,id=disk0": "VM: disk0", "blockdev null-co,node-name=db": "VM: db",
    "blockdev null-co,node-name=db-file": "VM: db-file",
    "device virtio-blk-pci,drive=db": "VM: db", "device e1000,netdev=net0": "VM: net0",
    "mon chardev=tools": "VM: tools", "mon tools": "VM: tools",
    "serial chardev:serial": "VM: serial", "device isa-serial,chardev=agent": "agent",
    "device qemu-xhci,id=usb": "VM: usb", "device virtio-scsi-pci,id=scsi0": "scsi0",
}  # fmt: skip
VM = """
name: web
image: debian
disks: [{size: 1M, id: db, bus: scsi}]
nics: [{}, {id: late}]
display: vnc
"""


@pytest.mark.parametrize("dash", ["-", "--"])
@pytest.mark.parametrize("text", REFUSED)
def test_what_contradicts_the_spec_or_passes_it_by_is_refused(
    text: str, dash: str
) -> None:
    option, _, value = text.partition(" ")
    words = [f"{dash}{option}", *([value] if value else [])]
    with pytest.raises(SpecError) as caught:
        parse_spec(f"{VM}extra_args: {['-usb', *words]!r}\n")
    assert caught.value.key == "extra_args"
    assert f"{dash}{option}: " in caught.value.problem
    assert REFUSED[text] in caught.value.problem


@pytest.mark.parametrize("words", [["x.img"], ["-usb", "x.img"], ["-k", "de", ""]])
def test_a_word_that_qemu_takes_for_a_disk_is_refused(words: list[str]) -> None:
    with pytest.raises(SpecError, match="is no option, and QEMU takes it for a disk"):
        parse_spec(f"name: web\nextra_args: {words!r}\n")


@pytest.mark.parametrize(
    "text",
    [
        "-device edu,id=e", "-global ICH9-LPC.disable_s3=1", "-machine hmat=on",
        "-boot menu=on,splash-time=5", "-action watchdog=pause", "-bios OVMF.fd", "-s",
        "-rtc base=localtime", "-d guest_errors", "-D /tmp/log", "-mem-prealloc",
        "-monitor unix:/tmp/m,server=on,wait=off", "-serial file:/tmp/second",
        "-debugcon file:/tmp/log", "-display gtk", "-run-with async-teardown=on",
        "-netdev user,id=net7 -device e1000,netdev=net7", "-no-user-config",
        "-object rng-random,id=mine", "-name process=x,debug-threads=off", "-uuid 0",
        "-device qemu-xhci,id=usb",
        "-device isa-debug-exit,iobase=0xf4,iosize=4", "-usbdevice tablet",
        "-drive if=pflash,format=raw,unit=0,readonly=on,file=/OVMF_CODE.fd",
    ],
)  # fmt: skip
def test_all_else_is_for_qemu(text: str) -> None:
    words = text.split(" ")
    spec = parse_spec(f"name: web\nextra_args: {words!r}\n")
    assert list(spec.extra_args) == words


def test_ids_are_free_where_the_vm_has_no_such_part() -> None:
    words = ["-netdev", "user,id=net0", "-object", "rng-builtin,id=rng0"]
    parse_spec(f"name: web\nnics: []\nrng: false\nextra_args: {words!r}\n")


def test_an_option_has_its_parts() -> None:
    (drive,) = options(["--drive", "file=a,,b,if=none,readonly"])
    assert drive.parts == [("file", "a,b"), ("if", "none"), ("", "readonly")]
    (json,) = options(["-device", '{"driver": "edu", "id": "e"}'])
    assert json.given("id") == ["e"]
    (broken,) = options(["-device", "{nonsense"])
    assert broken.parts == []


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("-drive if=pflash,format=raw,unit=1,file=vars.fd", True),
        ("-drive if=pflash,format=raw,unit=0,readonly=on,file=code.fd", False),
        ("--pflash vars.fd", True), ("-fda floppy", True), ("-sd card", True),
        ("-drive file=x.iso,media=cdrom", False), ("-drive file=x,readonly", False),
        ("-drive file=x,readonly=off", True), ("-blockdev file,filename=x", True),
        ('-blockdev {"driver":"file","filename":"x","read-only":true}', False),
        ('-blockdev {"driver":"file","filename":"x"}', True),
        ("-device edu -mtdblock x", True), ("-device edu", False), ("-bios x", False),
    ],
)  # fmt: skip
def test_drives_that_the_guest_writes_to_are_known(text: str, written: bool) -> None:
    assert bool(written_drives(text.split(" "))) is written
