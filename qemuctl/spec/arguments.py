"""Arguments for QEMU of the user's own (`extra_args`), and which of them cannot be.

QEMU takes an option with one dash or two. What would contradict the rest of the spec,
do nothing in silence, or take QEMU out of qemuctl's hands is refused, with what to use
instead; all else is QEMU's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from qemuctl.structs import Struct

# What each is instead: a key of the spec.
_KEYS = {
    "m": "memory", "smp": "cpu", "cpu": "cpu.model", "accel": "accel",
    "enable-kvm": "accel", "sandbox": "sandbox", "kernel": "boot.kernel",
    "append": "boot.cmdline", "initrd": "boot.initrd", "cdrom": "cdrom",
    "hda": "disks", "hdb": "disks", "hdc": "disks", "hdd": "disks", "vnc": "display",
    "spice": "display", "vga": "display.vga", "no-reboot": "on_guest_reboot",
}  # fmt: skip
_TERMINAL = "QEMU has no terminal; the guest's serial console: qemuctl console NAME"
_PRINTS = "QEMU would print something and end: run QEMU itself for that"
_OFF = "a VM whose guest has powered off would not be off"
_PATHS = "QEMU would not find the VM's files any more"
_USER = "run qemuctl as that user"
_REASONS = {
    "snapshot": "it does nothing for disks of the spec; to throw away what a guest "
    "writes: qemuctl run, or a template and qemuctl fork",
    "S": "use: qemuctl start NAME --paused",
    "incoming": "QEMU would wait for a state that nobody sends; use: qemuctl restore "
    "FILE, or qemuctl migrate",
    "loadvm": "use: qemuctl snapshot revert NAME SNAPSHOT",
    "daemonize": "it would take QEMU away from its keeper",
    "pidfile": "the pid is in: qemuctl info NAME --json",
    "preconfig": "QEMU would wait for a command that nobody sends",
    "readconfig": "what is in that file would not be checked; write it here",
    "writeconfig": "use: qemuctl argv NAME",
    "nographic": _TERMINAL, "curses": _TERMINAL, "no-shutdown": _OFF,
    "chroot": _PATHS, "runas": _USER, "user": _USER,
    "h": _PRINTS, "help": _PRINTS, "version": _PRINTS, "audio-help": _PRINTS,
    "dump-vmstate": _PRINTS,
}  # fmt: skip
# Parts of an option's value that are refused; "" is a value's head without a key.
_PARTS = {
    "name": {"": "name", "guest": "name"},
    "machine": {"": "machine", "type": "machine", "accel": "accel",
                "memory-backend": "memory"},
    "boot": {"": "boot.order", "order": "boot.order", "once": "boot.once",
             "strict": "boot.order"},
    "action": {"reboot": "on_guest_reboot", "panic": "on_panic"},
}  # fmt: skip
_PART_REASONS = {
    "action": {"shutdown": _OFF},
    "run-with": {"chroot": _PATHS, "user": _USER,
                 "exit-with-parent": "QEMU ends with who owns the VM anyway"},
}  # fmt: skip
# Options whose value is a character device.
_CHARACTER = {
    "serial", "parallel", "monitor", "qmp", "qmp-pretty", "debugcon", "chardev", "gdb",
    "qtest",
}  # fmt: skip
_ALIASES = {"M": "machine"}
_STDIO = re.compile(r"(mon:)?stdio\b")
# Options that no value follows (qemu-options.hx).
_ALONE = frozenset({
    "S", "async-teardown", "audio-help", "curses", "daemonize", "enable-kvm",
    "enable-sync-profile", "full-screen", "h", "help", "mem-prealloc", "no-acpi",
    "no-fd-bootchk", "no-hpet", "no-reboot", "no-shutdown", "no-user-config",
    "nodefaults", "nographic", "old-param", "one-insn-per-tb", "only-migratable",
    "portrait", "preconfig", "s", "sdl", "semihosting", "singlestep", "snapshot", "usb",
    "version", "win2k-hack", "xen-attach", "xen-domid-restrict",
})  # fmt: skip


class Option(Struct, kw_only=False):
    """One option: as it was written, its name without dashes, and its value."""

    word: str
    name: str
    value: str = ""

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The keys and texts of its value, JSON or ``head,key=value``; a head has the
        key ""."""
        if self.value.startswith("{"):
            try:
                members = json.loads(self.value)
            except ValueError:
                return []
            return [(str(key), str(item)) for key, item in members.items()]
        words = self.value.replace(",,", "\0").split(",")
        pairs = [word.replace("\0", ",").partition("=") for word in words]
        return [(key, text) if equals else ("", key) for key, equals, text in pairs]

    def given(self, *keys: str) -> list[str]:
        """What its value says for any of these keys."""
        return [text for key, text in self.parts if key in keys]


def options(arguments: Sequence[str]) -> list[Option]:
    """The options among the arguments. Raises ValueError for a word that is neither
    an option nor the value of one."""
    found: list[Option] = []
    words = iter(enumerate(arguments))
    for index, word in words:
        if not word.startswith("-"):
            raise ValueError(
                f"{word!r} is no option, and QEMU takes it for a disk (use the key "
                "disks)"
            )
        name = word[2:] if word.startswith("--") else word[1:]
        name = _ALIASES.get(name, name)
        following = arguments[index + 1 : index + 2]
        if following and name not in _ALONE and not following[0].startswith("-"):
            next(words)
            found.append(Option(word, name, following[0]))
        else:
            found.append(Option(word, name))
    return found


def check_arguments(
    arguments: Sequence[str], taken: Collection[str], *, modules: bool = False
) -> None:
    """Raises ValueError for an option that qemuctl sees to, or that uses an id of its
    own, of which ``taken`` are; with ``modules`` -initrd may name Multiboot modules."""
    for option in options(arguments):
        if modules and option.name == "initrd":
            continue
        for problem in _problems(option, taken):
            raise ValueError(f"{option.word}: {problem}")


def _problems(option: Option, taken: Collection[str]) -> Iterator[str]:
    name = option.name
    if name in _KEYS:
        yield f"use the key {_KEYS[name]}"
    if name in _REASONS:
        yield _REASONS[name]
    if name == "display" and option.value.startswith(("vnc", "spice")):
        yield "use the key display"
    if name == "display" and option.value.startswith("curses"):
        yield _TERMINAL
    if name in _CHARACTER and any(map(_STDIO.match, option.given("", "backend"))):
        yield f"{_TERMINAL}; for another program: file:PATH, or unix:PATH,server=on"
    keys, reasons = _PARTS.get(name, {}), _PART_REASONS.get(name, {})
    for key, _ in option.parts:
        if key in keys:
            yield f"use the key {keys[key]}"
        if key in reasons:
            yield f"{key}: {reasons[key]}"
    for id_ in filter(taken.__contains__, _ids(option)):
        yield f"the id is taken by a part of the VM: {id_}"


def _ids(option: Option) -> list[str]:
    """What it names: parts of its own, and those that it uses."""
    ids = option.given("id", "node-name", "drive", "chardev", "netdev")
    if option.name == "mon":
        ids += option.given("")
    if option.name in _CHARACTER and option.value.startswith("chardev:"):
        ids.append(option.value.removeprefix("chardev:"))
    return ids


def taken_ids(fields: Mapping[str, Any]) -> set[str]:
    """What QEMU's devices and back ends are called in a VM of these fields; those that
    were found wrong are missing."""
    disks, nics = fields.get("disks", ()), fields.get("nics", ())
    names = [disk.id or f"disk{index}" for index, disk in enumerate(disks)]
    if fields.get("image") is not None:  # it may bring the first disk
        names += ["disk0", f"disk{len(disks)}", "cidata"]
    names += ["cdrom0"] if fields.get("cdrom") is not None else []
    taken = {"owner", "tools", "events", "ram", "vmgenid", "pvpanic"}
    taken |= {name + end for name in names for end in ("", "-file", "-throttle")}
    taken |= {f"port{index}" for index in range(64)}
    for index, nic in enumerate(nics):
        name = nic.id or f"nic{index}"
        taken |= {name, name.replace("nic", "net", 1), f"net-{name}"}
    taken |= {f"{disk.bus}0" for disk in disks if disk.bus == "scsi"}
    taken |= {"ahci0"} if any(disk.bus == "sata" for disk in disks) else set()
    display = fields.get("display")
    if display is not None and display.vga != "none":
        taken |= {"vga"} if display.vga or display.type != "none" else set()
    if display is not None and display.type != "none":
        taken |= {"usb", "tablet"}
    parts = {
        "serial": ("serial",), "agent": ("vserial", "agent", "copy"),
        "rng": ("rng", "rng0"), "balloon": ("balloon",),
    }  # fmt: skip
    return taken.union(*(ids for key, ids in parts.items() if fields.get(key)))


# -- drives ------------------------------------------------------------------------

_DRIVES = frozenset(["drive", "blockdev", "fda", "fdb", "sd", "mtdblock", "pflash"])
_READONLY = ("readonly", "read-only")


def written_drives(arguments: Sequence[str]) -> list[str]:
    """The options among the arguments that bring a drive which the guest may write
    to, as they were written: qemuctl knows nothing of its file."""
    return [
        f"{option.word} {option.value}"
        for option in options(arguments)
        if option.name in _DRIVES and not _only_read(option)
    ]


def _only_read(option: Option) -> bool:
    said = option.given(*_READONLY)
    if said:
        return said[-1].lower() in ("on", "true", "yes")
    return "readonly" in option.given("") or "cdrom" in option.given("media")
