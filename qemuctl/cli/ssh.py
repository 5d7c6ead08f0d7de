"""`ssh` and `ssh-config`: OpenSSH's own client, told where the guest is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import SAY_AFTER, working
from qemuctl.cli.parameters import Name, Timeout, complete_names, seconds
from qemuctl.cli.running import run_async
from qemuctl.cli.words import NoStdin

if TYPE_CHECKING:
    from qemuctl.guest.ssh import Access

# tiny has no ssh server, but somebody may have put one into it.
_TINY_PATIENCE = 2.0


@command("ssh", example="qemuctl ssh web sudo apt update", for_guest=True)
def ssh(
    name: Annotated[
        str,
        Argument(
            metavar="[USER@]NAME",
            help="the VM's name",
            autocompletion=complete_names,
        ),
    ],
    command: Annotated[
        list[str] | None,
        Argument(metavar="[COMMAND…]", help="what to run; else a shell"),
    ] = None,
    user: Annotated[
        str | None,
        Option("--user", "-l", help="default: the spec's, else the image's own"),
    ] = None,
    option: Annotated[
        list[str] | None,
        Option(
            "--ssh-option",
            "-o",
            metavar="KEY=VALUE",
            help="an option of ssh_config(5), such as ForwardAgent=yes; repeatable",
        ),
    ] = None,
    timeout: Timeout = "120",
    no_stdin: NoStdin = False,
) -> None:
    """Log in to a VM, or run a command in it, by ssh.

    The terminal, the signals and the exit status are those of ssh, with a key
    pair of qemuctl's own and without ~/.ssh/config. One word is a line for the
    guest's shell ('df -h | tail'), several arrive as they are. --timeout is for
    the guest's ssh server to answer.
    """
    who, _, name = name.rpartition("@")
    user = user or who or None
    found = run_async(_ready(name, seconds(timeout)))
    words = command or []
    line = words[0] if len(words) == 1 else words
    _become(found.argv(line, options=option or [], user=user, stdin=not no_stdin))


def _become(argv: list[str]) -> NoReturn:
    """Lets ssh take the place of this command."""
    from qemuctl.command_server.become import become
    from qemuctl.errors import HostError

    try:
        become(argv)
    except FileNotFoundError as error:
        raise HostError(
            "there is no ssh on PATH", hint="install openssh-client"
        ) from error


async def _ready(name: str, patience: float) -> Access:
    from qemuctl.errors import StateError, WaitTimeout
    from qemuctl.image.names import TINY
    from qemuctl.registry.states import Action, State, require
    from qemuctl.registry.vms import load
    from qemuctl.vm.attach import attach
    from qemuctl.vm.ssh import reached

    async with await attach(name, Action.SSH) as vm:
        require(Action.SSH, await vm.state(), name)
        spec = load(name)
        try:
            if spec.image == TINY:
                patience = min(patience, _TINY_PATIENCE)
            with working(f"waiting for sshd of {name}", say_after=SAY_AFTER):
                return await reached(vm, spec, patience)
        except (StateError, WaitTimeout) as error:
            if spec.image != TINY:
                raise
            raise StateError(
                f"reach {name} by ssh", State.RUNNING, "tiny has no ssh server",
                hint=f"qemuctl exec {name} sh -c '…', or qemuctl console {name}",
            ) from error  # fmt: skip


@command("ssh-config", example="qemuctl ssh-config web >> ~/.ssh/config")
def ssh_config(name: Name) -> None:
    """Print what ssh, scp, rsync and editors need to know about a VM.

    A port that was chosen by the kernel changes with every start: forward a
    port of your own choice (-p 2222:22) for a stanza that stays true.
    """
    from qemuctl.vm.ssh import access

    print(run_async(access(name)).stanza(), end="")
