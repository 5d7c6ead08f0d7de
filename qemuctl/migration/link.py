"""The way to the receiver: a child for another home here, ssh for another host.

ssh is the user's own, with its configuration. One connection carries the channel,
and the unix sockets of the other side, which are forwarded as they come to be known.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from qemuctl.errors import QemuctlError
from qemuctl.migration.channel import PROTOCOL, Channel, ChannelLost
from qemuctl.migration.destination import Destination
from qemuctl.paths import made_run_home, private_dir
from qemuctl.peers import Last, last_of
from qemuctl.thread import in_full

# Who starts it on the other side could run anything there.
_RECEIVE = ["migrate-receive", "--trust"]
RECEIVER = "qemuctl"
"""The command on the other host."""

# Seconds for ssh, which may ask its user something, and for a receiver's first word.
_GREETING = 120.0
_BYE = 10.0
# How often the other side is asked for a sign of life, and how long it may take.
_ALIVE_EVERY = 5.0
_ALIVE_WITHIN = 20.0
# What ssh says of the channel's end is worth telling, and no more.
_LINES = 5
_WORDS = 4096
# `ssh -G` prints its settings.
_SETTINGS = 64 * 1024
_HOST_NAME = re.compile(r"^hostname (\S+)$", re.MULTILINE)
# Not `-m`: that would look for modules in the current folder first.
_PROGRAM = """
import sys
sys.path[:1] = [sys.argv.pop(1)]
from qemuctl.__main__ import main
main()
"""
# An interrupt is for us to act on: the line must hold until both sides agree.
_DEAF = 'trap "" INT; exec "$@"'
_OPTIONS = {
    # A network that swallows everything is a broken one after 20 seconds.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ConnectTimeout": "15",
    "ControlPersist": "no",
    "StreamLocalBindUnlink": "yes",
    "StreamLocalBindMask": "0177",
    "ExitOnForwardFailure": "no",
}


class Link:
    """An open way, and the `channel` on it."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: Channel, words: Last
    ) -> None:
        self.process, self.channel = process, channel
        self._words = words
        self._closed = False

    @property
    def words(self) -> str:
        """The last that was said on standard error there."""
        said = self._words.kept.decode(errors="replace").splitlines()
        return "\n".join(line.rstrip() for line in said[-_LINES:])

    async def close(self) -> None:
        """Hangs up; the other side then undoes what it was not told to keep, and has
        done so when this returns, unless it is stuck."""
        if self._closed:
            return
        self._closed = True
        await self.channel.close()
        try:
            async with asyncio.timeout(_BYE):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def socket(self, there: str, name: str) -> Path:
        """Where a unix socket of the other side can be reached; ``name`` is for a
        file of ours, if it needs one. Raises QemuctlError."""
        raise NotImplementedError

    async def host(self) -> str:
        """The name or address of the other side, for connections of one's own; its
        certificate is to be for that."""
        raise NotImplementedError


class _Child(Link):
    async def host(self) -> str:
        return "127.0.0.1"

    async def socket(self, there: str, name: str) -> Path:  # noqa: ARG002
        return Path(there)


class _Ssh(Link):
    ssh: list[str]
    folder: Path
    destination: Destination

    async def host(self) -> str:
        # What the user calls it may be a Host of ssh_config(5), and no name.
        asking = await asyncio.create_subprocess_exec(
            *self.ssh[:-1], "-G", self.ssh[-1],
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert asking.stdout is not None
        words = await last_of(asking.stdout, _SETTINGS)
        await asking.wait()
        named = _HOST_NAME.search(words.decode(errors="replace"))
        return named[1] if named else self.destination.host

    async def socket(self, there: str, name: str) -> Path:
        here = self.folder / name
        here.unlink(missing_ok=True)
        forward = ["-O", "forward", "-L", f"{here}:{there}"]
        asking = await asyncio.create_subprocess_exec(
            *self.ssh[:-1], *forward, self.ssh[-1],
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert asking.stderr is not None
        words = await last_of(asking.stderr, _WORDS)
        if await asking.wait():
            said = words.decode(errors="replace").strip()
            raise QemuctlError(f"ssh does not forward a unix socket: {said}")
        return here


@contextlib.asynccontextmanager
async def opened(
    destination: Destination, folder: Path, receiver: str = RECEIVER
) -> AsyncIterator[Link]:
    """The way to a receiver that has greeted. ``folder`` is for sockets of ours.

    Raises QemuctlError with the reason where nobody is there, or an older one.
    """
    # A folder that exists is its user's, as it is.
    if destination.home is not None and not destination.home.exists():
        private_dir(destination.home)
    private_dir(folder)
    if destination.home is not None:
        argv = _child(destination.home)
        process = await _spawned(argv, new_session=True)
    else:
        ssh = _ssh(destination, folder)
        told = [*ssh[:-1], "-M", ssh[-1], f"exec {receiver} {shlex.join(_RECEIVE)}"]
        # Without a session of its own, so that it can ask for a password.
        argv = ["/bin/sh", "-c", _DEAF, "sh", *told]
        process = await _spawned(argv, new_session=False)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    words = Last(_WORDS)
    listening = asyncio.create_task(words.follow(process.stderr))
    channel = Channel(process.stdout, process.stdin)
    link: Link
    if destination.home is not None:
        link = _Child(process, channel, words)
    else:
        link = _Ssh(process, channel, words)
        link.ssh, link.folder, link.destination = ssh, folder, destination
    try:
        await _greeted(link, destination, listening)
        yield link
    finally:
        await in_full(_closed(link, listening, folder))


@contextlib.asynccontextmanager
async def opened_again(
    destination: Destination, receiver: str = RECEIVER
) -> AsyncIterator[Link]:
    """As `opened`, for a VM whose own folders may have gone."""
    runs = made_run_home()
    with tempfile.TemporaryDirectory(prefix="move-", dir=runs) as folder:
        async with opened(destination, Path(folder) / "s", receiver) as link:
            yield link


def _child(home: Path) -> list[str]:
    root = Path(__file__).parents[2]
    # It was not started by ssh, whoever started us.
    setting = ["-u", "SSH_CONNECTION", f"QEMUCTL_HOME={home}"]
    # The same settings of Python as here: a command server, where there is one, serves
    # only those that it was started with.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001
    program = [sys.executable, *flags, "-c", _PROGRAM, str(root), *_RECEIVE]
    return ["/usr/bin/env", *setting, *program]


def _ssh(destination: Destination, folder: Path) -> list[str]:
    options = [f"-o{key}={value}" for key, value in _OPTIONS.items()]
    port = ["-p", str(destination.port)] if destination.port else []
    user = f"{destination.user}@" if destination.user else ""
    control = ["-S", str(folder / "ssh")]
    program = shlex.split(os.environ.get("QEMUCTL_SSH", "ssh"))
    return [*program, "-T", *options, *control, *port, f"{user}{destination.host}"]


async def _spawned(argv: list[str], *, new_session: bool) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv, start_new_session=new_session,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def _greeted(
    link: Link, destination: Destination, listening: asyncio.Task[bytes]
) -> None:
    try:
        async with asyncio.timeout(_GREETING):
            hello = await link.channel.receive()
    except TimeoutError as error:
        raise QemuctlError(
            f"nothing answers in {destination.text} for {_GREETING:g} s"
        ) from error
    except ChannelLost as error:
        if "sense" in error.message:
            raise QemuctlError(
                f"no qemuctl answers in {destination.text}: {error.message}",
                hint="what a shell says when it starts must go to standard error",
            ) from error
        status = await link.process.wait()
        # All that it said, before that is looked at.
        await asyncio.wait({listening}, timeout=_BYE)
        raise _unreachable(link, destination, status) from error
    if hello.get("hello") != PROTOCOL:
        raise QemuctlError(
            f"the qemuctl in {destination.text} is another version, which this one "
            "does not understand",
            hint="both sides need the same version of qemuctl",
        )


def _unreachable(link: Link, destination: Destination, status: int) -> QemuctlError:
    words = link.words or f"it ended with status {status}"
    if status == 127:
        return QemuctlError(
            f"there is no qemuctl in {destination.text}: {words}",
            hint="install it there, or say where it is: --receiver /PATH/TO/qemuctl",
        )
    if "No such command" in words or "No such option" in words:
        return QemuctlError(
            f"the qemuctl in {destination.text} is too old to receive a VM",
            hint="both sides need the same version of qemuctl",
        )
    return QemuctlError(f"cannot reach {destination.text}: {words}")


async def _closed(link: Link, listening: asyncio.Task[bytes], folder: Path) -> None:
    await link.close()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.asynccontextmanager
async def kept_alive(link: Link) -> AsyncIterator[None]:
    """The other side is asked for a sign of life now and then; without one the block
    is called off, with ChannelLost."""
    task = asyncio.current_task()
    assert task is not None
    lost: list[QemuctlError] = []

    async def ask() -> None:
        try:
            while True:
                # It is the time without a word that is measured.
                await asyncio.sleep(_ALIVE_EVERY)
                await link.channel.ask("ping", timeout=_ALIVE_WITHIN)
        except QemuctlError as error:
            words = f" ({link.words})" if link.words else ""
            lost.append(ChannelLost(f"{error.message}{words}"))
            task.cancel()

    asking = asyncio.create_task(ask())
    try:
        yield
    except asyncio.CancelledError:
        if lost and not task.uncancel():
            raise lost[0] from None
        raise
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
