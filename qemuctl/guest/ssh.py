"""ssh to a guest whose address is known: its command line, and files over it."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from qemuctl.errors import AgentError, HostError
from qemuctl.guest.conversation import CHUNK, Conversation, Ended
from qemuctl.guest.port import Way, guest_argv, new_token, watched
from qemuctl.peers import last_of
from qemuctl.structs import Struct
from qemuctl.tail import plain

# ssh's own status, whatever went wrong before the command ran.
_SSH_FAILED = 255
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
