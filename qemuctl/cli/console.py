"""`console`: the serial line on this terminal."""

from __future__ import annotations

import sys

from qemuctl.cli.declare import command
from qemuctl.cli.output import note
from qemuctl.cli.parameters import Name
from qemuctl.cli.running import run_async
from qemuctl.cli.words import Escape


@command("console", example="qemuctl console web")
def console(name: Name, escape: Escape = "^]") -> None:
    """Join the serial console; Ctrl-] leaves, and the VM goes on.

    A guest with a seed of qemuctl's logs the console in as root, unless the spec has
    user-data of its own. With --escape another key leaves, for keyboards that have no
    Ctrl-], and for a console in a console.
    """
    run_async(_console(name, escape_key(escape)))


def escape_key(text: str) -> bytes | None:
    """The byte of a key such as ^] or ctrl-t; None for `none`. Raises UsageError."""
    from qemuctl.errors import UsageError

    if text == "none":
        return None
    key = text.lower().removeprefix("ctrl-").removeprefix("^").upper()
    if len(text) < 2 or len(key) != 1 or not "@" <= key <= "_":
        raise UsageError(f"not a key with Ctrl: {text!r}", hint="^t, ctrl-t or none")
    return bytes([ord(key) & 0x1F])


def key_name(escape: bytes | None) -> str:
    """What a user has to do to leave the console."""
    return f"Ctrl-{chr(escape[0] | 0x40)}" if escape else "the end of the VM"


async def _console(name: str, escape: bytes | None) -> None:
    from qemuctl.errors import StateError
    from qemuctl.guest import console as terminal
    from qemuctl.registry.states import Action, require
    from qemuctl.vm.attach import attach

    async with await attach(name, Action.CONSOLE) as vm:
        require(Action.CONSOLE, await vm.state(), name)
        await vm.close()
        if not vm.paths.serial_socket.exists():
            socket = vm.paths.serial_socket
            has_port = any(socket.name in word for word in vm.record.argv)
            reason = (
                f"its socket is gone: {socket}" if has_port else "it has no serial port"
            )
            raise StateError(f"open the console of {name}", "on", reason)
        reader, writer = await terminal.connect(vm.paths.serial_socket)
        if sys.stdin is not None and sys.stdin.isatty():
            leaves = key_name(escape)
            note(f"connected to {name}; {leaves} leaves, Enter wakes a quiet shell")
        if not await terminal.interact(reader, writer, escape):
            note(f"{name} ended: {(await vm.wait_exit()).text}")
