"""`cp`: files into a VM and out of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qemuctl.cli.app import Timeout, command, seconds
from qemuctl.cli.output import SAY_AFTER, note, working
from qemuctl.cli.running import run_async

if TYPE_CHECKING:
    from qemuctl.guest.port import Way
    from qemuctl.vm.vm import Vm

# NAME:PATH; a file of this host that looks so is written ./NAME:PATH.
_THERE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):(.*)", re.DOTALL)
# How long a guest's ssh server may take to greet before the agent is used.
_SSH_PATIENCE = 1.5


class Via(StrEnum):
    """The way that files go."""

    AUTO = "auto"
    SSH = "ssh"
    AGENT = "agent"


@command("cp", example="qemuctl cp ./site.conf web:/etc/nginx/")
def copy(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE… TARGET", help="one side is NAME:PATH, in the guest"
        ),
    ],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="folders too")
    ] = False,
    via: Annotated[
        Via, typer.Option(help="auto: ssh where it answers, else the agent")
    ] = Via.AUTO,
    timeout: Timeout = "60",
) -> None:
    """Copy files into a VM, or out of it.

    A file appears whole or not at all, with its mode. A folder as the target
    takes in what is copied. In the guest, a path without a leading slash, or
    with ~/, counts from the home folder: the ssh user's, or with --via agent
    root's.
    --timeout is for the agent or the ssh server to be there.
    """
    from qemuctl.errors import UsageError

    if len(paths) < 2:
        raise UsageError(
            "a target is missing", hint="qemuctl cp FILE web:/tmp/, or web:/FILE ."
        )
    *sources, target = paths
    name, inward = _machine(sources, target)
    if len(sources) > 1 and inward:
        target = f"{target.rstrip('/')}/" if target[-1] != ":" else f"{target}./"
    elif len(sources) > 1 and not Path(target).is_dir():
        raise UsageError(f"not a folder, for more than one file: {target}")
    run_async(_copy(name, sources, target, inward, recursive, via, seconds(timeout)))


def _machine(sources: list[str], target: str) -> tuple[str, bool]:
    """The VM's name, and whether files go into it. Raises UsageError."""
    from qemuctl.errors import UsageError

    into = _THERE.fullmatch(target)
    matches = [_THERE.fullmatch(source) for source in sources]
    names = {match[1] for match in matches if match}
    if into and names:
        raise UsageError(
            "from one VM to another is not possible in one step",
            hint="copy it here first, and then from here",
        )
    if into:
        return into[1], True
    if not names:
        raise UsageError(
            "neither side is in a VM", hint="name it: qemuctl cp FILE web:/tmp/"
        )
    if len(names) > 1 or not all(matches):
        raise UsageError("all files must come from one VM")
    return names.pop(), False


async def _copy(
    name: str,
    sources: list[str],
    target: str,
    inward: bool,
    recursive: bool,
    via: Via,
    patience: float,
) -> None:
    from qemuctl.vm.attach import attach
    from qemuctl.vm.ssh import SshFailed
    from qemuctl.vm.states import Action, require

    async with await attach(name, Action.COPY) as vm:
        require(Action.COPY, await vm.state(), name)
        await vm.close()  # the monitor is for others while the copy runs
        way = await _way(vm, via, patience)
        for source in sources:
            try:
                await _one(vm, source, target, inward, recursive, way)
            except SshFailed as error:
                if via is not Via.AUTO:
                    raise
                note(f"{error.message}; taking the guest's agent instead")
                way = await _way(vm, Via.AGENT, patience)
                await _one(vm, source, target, inward, recursive, way)


async def _one(
    vm: Vm, source: str, target: str, inward: bool, recursive: bool, way: Way | None
) -> None:
    from qemuctl.cli.progress import transfer

    with transfer(f"{source} to {target}") as progress:
        if inward:
            await vm.files.put(
                Path(source), target.partition(":")[2],
                recursive=recursive, progress=progress, way=way,
            )  # fmt: skip
        else:
            await vm.files.get(
                source.partition(":")[2], Path(target),
                recursive=recursive, progress=progress, way=way,
            )  # fmt: skip


async def _way(vm: Vm, via: Via, patience: float) -> Way | None:
    """The way to take, ready to be taken; None is the agent's."""
    from qemuctl.errors import HostError, ImageError, StateError, WaitTimeout

    if via is not Via.AGENT:
        from qemuctl.vm.definitions import load
        from qemuctl.vm.ssh import access_of, through_ssh, wait_ssh

        # No forward, no answer, no OpenSSH here, or an image that is gone.
        no_ssh = (StateError, WaitTimeout, HostError, ImageError)
        with contextlib.suppress(*(no_ssh if via is Via.AUTO else ())):
            access = await asyncio.to_thread(access_of, vm, load(vm.name))
            with working(f"waiting for sshd of {vm.name}", say_after=SAY_AFTER):
                await wait_ssh(
                    vm, access, patience if via is Via.SSH else _SSH_PATIENCE
                )
            return through_ssh(access)
    with working(f"waiting for the agent of {vm.name}", say_after=SAY_AFTER):
        await vm.wait_ready(timeout=patience)
    return None
