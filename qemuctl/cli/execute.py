"""`exec`: a command in a VM that runs."""

from __future__ import annotations

from typing import Annotated

import typer

from qemuctl.cli.app import Name, Timeout, command, seconds
from qemuctl.cli.output import working
from qemuctl.cli.running import run_async


@command("exec", example="qemuctl exec web -- sh -c 'free -m; df -h'")
def execute(
    name: Name,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND…", help="what to run")
    ],
    timeout: Timeout = "60",
) -> None:
    """Run a command in a VM through its guest agent.

    Output is streamed, standard input passed on, and the guest's exit status
    is the command's own. --timeout is for the agent to be there.
    """
    raise SystemExit(run_async(_execute(name, command, seconds(timeout))))


async def _execute(name: str, command: list[str], patience: float) -> int:
    from qemuctl.cli.run import run_command
    from qemuctl.vm.attach import attach
    from qemuctl.vm.states import Action, require

    async with await attach(name, Action.EXEC) as vm:
        require(Action.EXEC, await vm.state(), name)
        await vm.close()  # the monitor is for others while the command runs
        with working("waiting for the guest's agent"):
            await vm.wait_ready(timeout=patience)
        return await run_command(vm, command)
