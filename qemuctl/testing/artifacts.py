"""What a failed test leaves of its guest: gathered while it is there, as files."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl.cmdline import format_argv
from qemuctl.errors import QemuctlError
from qemuctl.qmp import eventlog
from qemuctl.qmp.events import GuestPanicked
from qemuctl.tail import plain

if TYPE_CHECKING:
    from qemuctl.spec import Spec
    from qemuctl.vm.outcome import Outcome
    from qemuctl.vm.vm import Vm

CONSOLE, ARGV, QMP, SCREEN = "console.log", "argv.sh", "qmp.jsonl", "screen.png"
# Of a log that grew without end its end will do; in bytes.
_MOST = 16 * 1024 * 1024
_NAME_MAX = 120


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found of a guest; ``ended`` is None while QEMU ran.

    ``files`` are contents by name, those that were there.
    """

    name: str
    ended: Outcome | None
    panicked: bool
    files: dict[str, bytes]

    def text(self, file: str, lines: int | None = None) -> str:
        """A file as text that is safe to print, or its last lines."""
        text = plain(self.files.get(file, b"").decode(errors="replace"))
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    def write(self, folder: Path) -> None:
        """Writes the files into a folder, which is made. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


async def gather(vm: Vm, spec: Spec) -> Evidence:
    """What can be found of a VM, whether it runs or has just ended."""
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
    if ended is None and _has_screen(spec):
        with contextlib.suppress(QemuctlError, OSError):
            files[SCREEN] = (await vm.screen.picture()).png
    return Evidence(
        name=vm.name,
        ended=ended,
        panicked=panicked,
        files={name: content for name, content in files.items() if content},
    )


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
    name = re.sub(r"[^\w.\[\]=,+-]+", "-", test.replace("::", "."))[:_NAME_MAX]
    if name != test.replace("::", ".").replace("/", "-"):
        # What was left out may be all that two tests differ in.
        name += f"-{hashlib.sha256(test.encode()).hexdigest()[:6]}"
    return name
