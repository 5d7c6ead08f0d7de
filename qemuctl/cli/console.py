"""`console`: the serial line on this terminal."""

from __future__ import annotations

import sys

from qemuctl.cli.app import Name, command
from qemuctl.cli.output import note
from qemuctl.cli.running import run_async


@command("console", example="qemuctl console web")
def console(name: Name) -> None:
    """Join the serial console; Ctrl-] leaves, and the VM goes on."""
    run_async(_console(name))


async def _console(name: str) -> None:
    from qemuctl.errors import StateError
    from qemuctl.guest import console as terminal
    from qemuctl.vm.attach import attach
    from qemuctl.vm.states import Action, require

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
            note(f"connected to {name}; Ctrl-] leaves, Enter wakes a quiet shell")
        if not await terminal.interact(reader, writer):
            note(f"{name} ended: {(await vm.wait_exit()).text}")
