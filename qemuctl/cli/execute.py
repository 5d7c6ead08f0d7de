"""`exec`: a command in a VM that runs."""

from __future__ import annotations

from typing import Annotated

from qemuctl.cli.declare import Argument, command
from qemuctl.cli.output import working
from qemuctl.cli.parameters import Name, Timeout, seconds
from qemuctl.cli.running import run_async
from qemuctl.cli.words import Interactive, NoStdin, Tty, Typed


@command("exec", example="qemuctl exec web sh -c 'free -m; df -h'", for_guest=True)
def execute(
    name: Name,
    command: Annotated[list[str], Argument(metavar="COMMAND…", help="what to run")],
    timeout: Timeout = "60",
    no_stdin: NoStdin = False,
    interactive: Interactive = False,
    tty: Tty = False,
) -> None:
    """Run a command in a VM through its guest agent.

    Output is streamed, standard input passed on, and the guest's exit status
    is the command's own. --timeout is for the agent to be there.

    In a loop over lines (while read x; do qemuctl exec -n web …; done) give -n, or
    the first command reads the rest of them.
    """
    typed = Typed(no_stdin, interactive, tty)
    typed.check(command, f"qemuctl console {name}, or qemuctl ssh {name}")
    raise SystemExit(run_async(_execute(name, command, seconds(timeout), typed)))


async def _execute(name: str, command: list[str], patience: float, typed: Typed) -> int:
    from qemuctl.cli.in_guest import run_command
    from qemuctl.registry.states import Action, require
    from qemuctl.vm.attach import attach

    async with await attach(name, Action.EXEC) as vm:
        require(Action.EXEC, await vm.state(), name)
        await vm.close()  # the monitor is for others while the command runs
        with working("waiting for the guest's agent"):
            await vm.wait_ready(timeout=patience)
        return await run_command(vm, command, typed)
