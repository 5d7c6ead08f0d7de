"""What a failed test leaves of its guest: gathered while it is there, as files."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl.cmdline import format_argv
from qemuctl.errors import QemuctlError
from qemuctl.qmp import eventlog
from qemuctl.qmp.events import GuestPanicked
from qemuctl.structs import Struct
from qemuctl.tail import plain

if TYPE_CHECKING:
    from qemuctl.registry.records.outcome import Outcome
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm

CONSOLE, ARGV, QMP, SCREEN = "console.log", "argv.sh", "qmp.jsonl", "screen.png"
# Of a log that grew without end its end will do; in bytes.
_MOST = 16 * 1024 * 1024
_NAME_MAX = 120
# Seconds for a picture: a QEMU that hangs draws none.
_PICTURE_PATIENCE = 5.0


class Evidence(Struct):
    """What was found of a guest; ``ended`` is None while QEMU ran.

    ``files`` are contents by name, those that were there; ``no_picture`` is why the
    screen of a guest that runs is not among them.
    """

    name: str
    ended: Outcome | None
    panicked: bool
    files: dict[str, bytes]
    no_picture: str | None = None

    def text(self, file: str, lines: int | None = None) -> str:
        """A file as text that is safe to print, or its last lines."""
        text = plain(self.files.get(file, b"").decode(errors="replace"))
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    def write(self, folder: Path) -> None:
        """Writes the files into a folder, which is made, for their owner alone: they
        hold what the guest was told and said. Raises OSError."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, content in self.files.items():
            path = folder / name
            path.touch(0o600)
            path.chmod(0o600)
            path.write_bytes(content)


async def gather(vm: Vm, spec: Spec) -> Evidence:
    """What can be found of a VM, whether it runs or has just ended, without asking
    it anything."""
    panicked = any(e.name == GuestPanicked.NAME for e in eventlog.past(vm.paths.events))
    # After a panic QEMU is about to end, and its exit status tells more.
    ends = panicked and spec.on_panic in ("exit-failure", "shutdown")
    ended = await vm.wait_exit() if ends or not vm.record.qemu.alive() else None
    files = {
        name: _end_of(path)
        for name, path in {
            CONSOLE: vm.paths.serial_log,
            QMP: vm.paths.qmp_log,
            "events.jsonl": vm.paths.events,
            "qemu.log": vm.paths.qemu_log,
            "vm.yaml": vm.paths.spec,
        }.items()
    }
    files[ARGV] = f"{format_argv(vm.record.argv)}\n".encode()
    return Evidence(
        name=vm.name,
        ended=ended,
        panicked=panicked,
        files={name: content for name, content in files.items() if content},
    )


async def with_picture(found: Evidence, vm: Vm, spec: Spec) -> Evidence:
    """The same with a picture of the screen, or the reason why there is none."""
    if found.ended is not None:
        return found
    if not _has_screen(spec):
        why = 'the guest has no display; spec={"display": "vnc"} gives it one'
        return replace(found, no_picture=why)
    try:
        async with asyncio.timeout(_PICTURE_PATIENCE):
            picture = await vm.screen.picture()
    except TimeoutError:
        why = f"QEMU gave none in {_PICTURE_PATIENCE:g} s"
        return replace(found, no_picture=why)
    except (QemuctlError, OSError) as error:
        return replace(found, no_picture=str(error))
    return replace(found, files={**found.files, SCREEN: picture.png})


def _has_screen(spec: Spec) -> bool:
    display = spec.display
    return display.vga != "none" and (display.type != "none" or bool(display.vga))


def _end_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MOST))
            return file.read(_MOST)
    except OSError:
        return b""


def folder_name(test: str) -> str:
    """A test's id as the name of one folder, another one for each test."""
    # In a parameter it is no separator.
    path, bracket, parameters = test.partition("[")
    whole = path.replace("::", ".") + bracket + parameters
    name = re.sub(r"[^\w.\[\]=,+-]+", "-", whole)[:_NAME_MAX]
    if name != whole:
        # What was left out or replaced may be all that two tests differ in.
        name += f"-{hashlib.sha256(test.encode()).hexdigest()[:6]}"
    return name
