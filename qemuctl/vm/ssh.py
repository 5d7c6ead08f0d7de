"""ssh into a guest: where it listens, as whom, with which keys."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import shlex
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qemuctl.errors import (
    AgentError,
    HostError,
    QemuctlError,
    StateError,
    WaitTimeout,
)
from qemuctl.guest.conversation import CHUNK, Conversation, Ended
from qemuctl.guest.port import Way, guest_argv, new_token, watched
from qemuctl.peers import last_of
from qemuctl.structs import Struct
from qemuctl.tail import plain
from qemuctl.vm.agent_port import boots_first
from qemuctl.vm.attach import attach
from qemuctl.vm.definitions import load
from qemuctl.vm.readiness import unless_hopeless
from qemuctl.vm.ssh_port import PORT, forward_of, until_greets
from qemuctl.vm.ssh_where import may_be_reached, where
from qemuctl.vm.states import Action

if TYPE_CHECKING:
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm

SSH_TIMEOUT = 120.0
# Seconds of waiting after which the guest may have another address by now.
_ASK_EVERY = 10.0
# ssh's own status, whatever went wrong before the command ran.
_SSH_FAILED = 255
_SHUT_DOWN = "poweroff || sudo -n poweroff || sudo -n shutdown -h now"
# Seconds for a script at the far end to notice that its input has ended.
_PUT_DOWN = 2.0


class SshFailed(HostError):
    """ssh did not get as far as the command; in its own words."""


class Access(Struct):
    """How to reach the ssh server of one running VM.

    ``identity`` is the private key's file; ``alias`` is the name under which
    ``known_hosts``, the VM's own, knows the guest.
    """

    host: str
    port: int
    user: str
    identity: Path
    known_hosts: Path
    alias: str

    def settings(self) -> dict[str, str]:
        """What ssh_config(5) calls it, each value as it is written there."""
        return {
            "HostName": self.host,
            "Port": str(self.port),
            "User": self.user,
            "IdentityFile": _quoted(self.identity),
            "IdentitiesOnly": "yes",
            "HostKeyAlias": self.alias,
            "UserKnownHostsFile": _quoted(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            # The first connection learns the key; another one is an alarm.
            "StrictHostKeyChecking": "accept-new",
            "LogLevel": "ERROR",
        }

    def argv(
        self,
        command: Sequence[str] | str = (),
        *,
        options: Sequence[str] = (),
        user: str | None = None,
        stdin: bool = True,
    ) -> list[str]:
        """The ssh command line; ``command`` is a line for the guest's shell, or
        words, which arrive in the guest as they are.

        The user's own ssh_config is left out (``-F none``): what it says for
        all hosts, such as a proxy, is not meant for a VM on this one.
        ``options`` are ssh_config(5)'s, ``Key=Value``, and come before ours.
        Without ``stdin`` it reads none.
        """
        ours = self.settings() | ({"User": user} if user else {})
        words = [] if stdin else ["-n"]
        words += [f"-o{option}" for option in options]
        words += [f"-o{key}={value}" for key, value in ours.items()]
        line = command if isinstance(command, str) else shlex.join(command)
        remote = [line] if line else []
        return ["ssh", "-F", "none", *words, "--", self.alias, *remote]

    def stanza(self) -> str:
        """The same for an ssh_config: a ``Host`` of the VM's name."""
        lines = [f"    {key} {value}" for key, value in self.settings().items()]
        return "\n".join([f"Host {self.alias}", *lines]) + "\n"


def _quoted(path: Path) -> str:
    # ssh splits at spaces and expands percent signs.
    return f'"{str(path).replace("%", "%%")}"'


async def access(name: str) -> Access:
    """How to reach the ssh server of the running VM called ``name``.

    Raises NotFound, StateError when it is off or no way leads to its port 22, and
    HostError when there is no key pair and none can be made.
    """
    async with await attach(name, Action.SSH) as vm:
        return access_at(vm, load(name), await where(vm))


async def reached(vm: Vm, spec: Spec, timeout: float = SSH_TIMEOUT) -> Access:
    """As `access`, for a VM that is at hand, once its ssh server greets.

    A guest that boots may have its address later: the agent is asked again now and
    then. Raises as `access` and `wait_ssh` do.
    """
    end = time.monotonic() + timeout
    while True:
        at, last = await where(vm), end - time.monotonic() <= _ASK_EVERY
        if at is None and (last or not await may_be_reached(vm)):
            raise _no_way(vm)
        patience = min(_ASK_EVERY, max(end - time.monotonic(), 0))
        if at is None:
            await asyncio.sleep(min(1, patience))  # no event tells of an address
            continue
        found = access_at(vm, spec, at)
        await vm.close()  # the monitor is for others while we wait
        try:
            await wait_ssh(vm, found, patience)
            return found
        except WaitTimeout:
            if last:
                raise


def access_at(vm: Vm, spec: Spec, at: tuple[str, int] | None) -> Access:
    """How to reach the ssh server that is at this address and port. Raises as
    `access`."""
    from qemuctl.image.keys import check_user, own_key

    check_user()
    if at is None:
        raise _no_way(vm)
    return Access(
        host=at[0],
        port=at[1],
        user=login_user(spec),
        identity=own_key().private,
        known_hosts=vm.paths.known_hosts,
        alias=vm.name,
    )


def _no_way(vm: Vm) -> StateError:
    return StateError(
        f"reach {vm.name} by ssh",
        "running",
        f"no port of this host leads to its port {PORT}, and its agent tells no "
        "address that this host reaches",
        hint=f"give it one: qemuctl create … -p :{PORT}, or nics in its spec "
        f"(qemuctl edit {vm.name}), and start it anew",
    )


def login_user(spec: Spec) -> str:
    """Whom to log in as: the spec's user, else the image's, else one's own name.

    Raises ImageError for an image that is not there any more.
    """
    if spec.cloud_init is not None and spec.cloud_init.user is not None:
        return spec.cloud_init.user
    return _image_user(spec) or getpass.getuser()


def _image_user(spec: Spec) -> str | None:
    """The one place that asks the image whom it makes at its first boot."""
    if spec.image is None or spec.image_is_file:
        return None
    from qemuctl.image.store import find

    return find(spec.image).manifest.user


async def wait_ssh(vm: Vm, access: Access, timeout: float = SSH_TIMEOUT) -> None:
    """Waits until the guest's ssh server greets.

    Raises WaitTimeout with the console's tail, NotReady when the console tells that
    the guest does not boot, and UnexpectedExit when QEMU ends first.
    """
    greeting = unless_hopeless(
        until_greets(access.host, access.port),
        vm.paths.serial_log,
        past=boots_first(vm.paths, vm.record),
    )
    with vm.deadline(f"ssh at {access.host}:{access.port}", timeout) as left:
        await vm.unless_ended(greeting, left)


async def shut_down(vm: Vm, timeout: float) -> bool:
    """Tells the guest by ssh to shut down; whether it was told within ``timeout``
    seconds."""
    try:
        # By what is on the disk: its sockets may be out of reach.
        found = access_at(vm, load(vm.name), forward_of(vm.record.forwards))
        argv = found.argv(_SHUT_DOWN, options=["BatchMode=yes"])
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except (QemuctlError, OSError):
        return False
    try:
        async with asyncio.timeout(timeout):
            return await process.wait() == 0
    except TimeoutError:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def through_ssh(access: Access) -> Way:
    """The way of files over ssh, as `qemuctl.guest.port` has it.

    The same scripts run in the guest, as the user of ``access``. Raises
    SshFailed when they do not begin.
    """
    argv = access.argv

    @contextlib.asynccontextmanager
    async def way(script: str, arguments: Sequence[str]) -> AsyncIterator[Conversation]:
        token = new_token()
        command = guest_argv(script, token, "pipe", arguments)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv(command, options=["BatchMode=yes"]),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=4 * CHUNK,
            )
        except FileNotFoundError as error:
            raise SshFailed(
                "there is no ssh on PATH", hint="install openssh-client"
            ) from error
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            stdin = process.stdin

            async def send(data: bytes) -> None:
                stdin.write(data)
                await stdin.drain()

            async with watched(_ended(process)) as end:
                talk = Conversation(token, process.stdout, send, end)
                await talk.begun()
                yield talk
        finally:
            await asyncio.shield(_put_down(process))

    return way


async def _put_down(process: asyncio.subprocess.Process) -> None:
    """Ends ssh: the end of its input ends the script, which cleans up."""
    assert process.stdin is not None
    if not process.stdin.transport.is_closing():
        process.stdin.transport.abort()
    # Some Pythons complain of an end that nobody asked about.
    with contextlib.suppress(OSError):
        await process.stdin.wait_closed()
    try:
        async with asyncio.timeout(_PUT_DOWN):
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await last_of(stream, 0)
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ended(process: asyncio.subprocess.Process) -> Ended:
    assert process.stderr is not None
    words = (await last_of(process.stderr)).decode(errors="replace")
    status = await process.wait()
    if status == _SSH_FAILED:
        lines = plain(words).strip().splitlines() or ["no reason given"]
        raise SshFailed(f"ssh failed: {lines[-1]}")
    if status < 0:
        raise AgentError(f"ssh was ended by signal {-status}")
    return Ended(status, words)
