"""A command in a guest, with this process's own streams."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from qemuctl.cli.words import Typed

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm


async def run_command(vm: Vm, command: list[str], typed: Typed) -> int:
    """Runs a command with this process's own streams; its status."""
    from qemuctl.errors import AgentRefused
    from qemuctl.guest.console import read_fd
    from qemuctl.guest.stream import run_streaming

    stdin = read_fd(sys.stdin.fileno()) if typed.passed_on else None
    try:
        return await vm.unless_ended(
            run_streaming(
                vm.agent,
                command,
                stdin=stdin,
                stdout=_writer(sys.stdout.buffer),
                stderr=_writer(sys.stderr.buffer),
            )
        )
    except AgentRefused as error:
        # Some distributions forbid guest-exec.
        error.hint = f"what needs no agent: {_without_agent(vm)}"
        raise


def _without_agent(vm: Vm) -> str:
    from qemuctl.guest.ssh_port import forward_of

    if vm.record.attached:
        return "a VM that stays, forwards a port (create -p :22) and has ssh"
    console = f"qemuctl console {vm.name}"
    reached = forward_of(vm.record.forwards) is not None
    return f"qemuctl ssh {vm.name}, {console}" if reached else console


def _writer(stream: Any) -> Any:
    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write
