"""`cp`: files into a VM and out of it."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import SAY_AFTER, note, working
from qemuctl.cli.parameters import Timeout, seconds
from qemuctl.cli.running import run_async
from qemuctl.errors import UsageError
from qemuctl.structs import Struct

if TYPE_CHECKING:
    from qemuctl.guest.port import Way
    from qemuctl.vm.vm import Vm

# NAME:PATH or USER@NAME:PATH; a file of this host that looks so is written
# ./NAME:PATH.
_THERE = re.compile(r"((?:[^@:/\s]+@)?[A-Za-z0-9][A-Za-z0-9._-]*):(.*)", re.DOTALL)
# Standard input or output in the place of a file; one of that name is written ./-.
_STREAM = "-"
# How long a guest's ssh server may take to greet before the agent is used.
_SSH_PATIENCE = 1.5
_ROOT = "root"


class Via(StrEnum):
    """The way that files go."""

    AUTO = "auto"
    SSH = "ssh"
    AGENT = "agent"


@command("cp", example="qemuctl cp ./site.conf web:/etc/nginx/")
def copy(
    paths: Annotated[
        list[str],
        Argument(
            metavar="SOURCE… TARGET",
            help="one side is [USER@]NAME:PATH, in the guest; - is standard output "
            "or input",
        ),
    ],
    recursive: Annotated[bool, Option("--recursive", "-r", help="folders too")] = False,
    via: Annotated[
        Via, Option(help="auto: ssh where it answers, else the agent")
    ] = Via.AUTO,
    timeout: Timeout = "60",
) -> None:
    """Copy files into a VM, or out of it.

    A file appears whole or not at all, with its mode. A folder as the target
    takes in what is copied. By ssh you are the image's user (or USER), by the
    agent root; in the guest, a path without a leading slash, or with ~/, counts
    from that one's home folder.
    --timeout is for the agent or the ssh server to be there.
    """
    if len(paths) < 2:
        raise UsageError(
            "a target is missing", hint="qemuctl cp FILE web:/tmp/, or web:/FILE ."
        )
    *sources, target = paths
    there, inward = _machine(sources, target)
    if len(sources) > 1 and inward:
        target = f"{target.rstrip('/')}/" if target[-1] != ":" else f"{target}./"
    elif len(sources) > 1 and not Path(target).is_dir() and target != _STREAM:
        raise UsageError(f"not a folder, for more than one file: {target}")
    job = _Job(target, inward, recursive, via, seconds(timeout))
    user, _, name = there.rpartition("@")
    run_async(_copy(name, user, sources, job))


class _Job(Struct, kw_only=False):
    """What the command line asks for, but for the sources."""

    target: str
    inward: bool
    recursive: bool
    via: Via
    patience: float


def _machine(sources: list[str], target: str) -> tuple[str, bool]:
    """[USER@]NAME, and whether files go into it. Raises UsageError."""
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


async def _copy(name: str, user: str, sources: list[str], job: _Job) -> None:
    from qemuctl.guest.ssh import SshFailed
    from qemuctl.registry.states import Action, require
    from qemuctl.vm.attach import attach

    async with await attach(name, Action.COPY) as vm:
        require(Action.COPY, await vm.state(), name)
        await vm.close()  # the monitor is for others while the copy runs
        way, who = await _way(vm, user, job)
        for source in sources:
            try:
                await _one(vm, source, job, way, who)
            except SshFailed as error:
                if job.via is not Via.AUTO or user:
                    raise
                note(f"{error.message}; taking the guest's agent instead")
                way, who = await _way(vm, user, replace(job, via=Via.AGENT))
                await _one(vm, source, job, way, who)


async def _one(vm: Vm, source: str, job: _Job, way: Way | None, who: str) -> None:
    from qemuctl.cli.progress import transfer
    from qemuctl.guest.conversation import CopyError

    options: dict[str, Any] = {"recursive": job.recursive, "way": way}
    try:
        with transfer(f"{source} to {job.target}") as progress:
            options["progress"] = progress
            if job.inward:
                place = job.target.partition(":")[2]
                with _readable(source) as file:
                    put = await vm.files.put(file, place, **options)
            else:
                with _writable(job.target) as file:
                    await vm.files.get(source.partition(":")[2], file, **options)
    except CopyError as error:
        if who != _ROOT:
            error.hint = f"you are {who} there; with --via agent you are root"
        raise
    if job.inward:
        where = f"~{put[1:]}" if put.startswith("./") else put
        note(f"copied to {vm.name}:{where} as {who}")


@contextlib.contextmanager
def _readable(source: str) -> Iterator[Path]:
    """The file to read; for the stream, one that holds all of standard input."""
    if source != _STREAM:
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="qemuctl-") as folder:
        path = Path(folder) / "stdin"
        with path.open("xb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path


@contextlib.contextmanager
def _writable(target: str) -> Iterator[Path]:
    """The file to write; for the stream, one that goes to standard output when it is
    whole."""
    if target != _STREAM:
        yield Path(target)
        return
    with tempfile.TemporaryDirectory(prefix="qemuctl-") as folder:
        path = Path(folder) / "stdout"
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


async def _way(vm: Vm, user: str, job: _Job) -> tuple[Way | None, str]:
    """The way to take, ready to be taken, and whom it makes one; None is the
    agent's."""
    from qemuctl.errors import HostError, ImageError, StateError, WaitTimeout

    # The agent is root already, whom many guests do not let in by ssh.
    if job.via is Via.SSH or (job.via is Via.AUTO and user != _ROOT):
        from qemuctl.guest.ssh import through_ssh
        from qemuctl.registry.vms import load
        from qemuctl.vm.ssh import reached

        auto = job.via is Via.AUTO and not user
        # No forward, no answer, no OpenSSH here, or an image that is gone.
        no_ssh = (StateError, WaitTimeout, HostError, ImageError)
        with contextlib.suppress(*(no_ssh if auto else ())):
            patience = _SSH_PATIENCE if auto else job.patience
            with working(f"waiting for sshd of {vm.name}", say_after=SAY_AFTER):
                access = await reached(vm, load(vm.name), patience)
            access = replace(access, user=user or access.user)
            return through_ssh(access), access.user
    if user not in ("", _ROOT):
        raise UsageError(f"by the agent you are root, not {user}")
    with working(f"waiting for the agent of {vm.name}", say_after=SAY_AFTER):
        await vm.wait_ready(timeout=job.patience)
    return None, _ROOT
