"""The screen of a running VM: a picture of it, where viewers find it, who may look."""

from __future__ import annotations

import asyncio
import os
import secrets
import string
from dataclasses import field
from pathlib import Path
from urllib.parse import quote

from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, ImageError, StateError, UsageError
from qemuctl.image.whole import whole
from qemuctl.qmp.commands import Command, QueryVnc, R
from qemuctl.qmp.screen import (
    ExpirePassword,
    Protocol,
    QuerySpice,
    Screendump,
    SetPassword,
)
from qemuctl.registry.states import Action, State, require
from qemuctl.structs import Struct

PASSWORD_LIFETIME = 300.0
_LONGEST_LIFETIME = 8760 * 3600.0
# VNC takes eight characters and drops the rest in silence; SPICE refuses more.
_LONGEST: dict[Protocol, int] = {"vnc": 8, "spice": 60}
# Without those that look like others.
_LETTERS = "".join(
    sorted(set(string.ascii_letters + string.digits) - set("0O1lI5S2Z8B"))
)
_PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_END = b"IEND\xaeB`\x82"
_NO_SCREEN = "give it one with: qemuctl edit NAME (display: vnc), then restart it"


class Picture(Struct):
    """A picture of the screen: a whole PNG, and its size in pixels."""

    png: bytes = field(repr=False)
    width: int
    height: int


class Server(Struct):
    """Where the screen is served: at ``path``, or at ``host`` and ``port``.

    ``locked`` tells that a viewer must know a password.
    """

    protocol: Protocol
    path: Path | None = None
    host: str = ""
    port: int = 0
    locked: bool = False

    @property
    def uri(self) -> str:
        """As viewers write it: ``vnc+unix:///path``, ``vnc://127.0.0.1:5901``."""
        if self.path is None:
            return f"{self.protocol}://{bracketed(self.host)}:{self.port}"
        # What stands there is what a SPICE client opens: it decodes nothing.
        raw = self.protocol == "spice"
        return f"{self.protocol}+unix://{self.path if raw else quote(str(self.path))}"


def bracketed(host: str) -> str:
    """A host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


class Screen:
    """``vm.screen``: what the guest shows, and who may look."""

    def __init__(self, vm: Connection) -> None:
        self._vm = vm

    async def picture(self) -> Picture:
        """What the screen shows now (screendump), text modes included.

        Works in every state but off. Raises StateError when there is no screen,
        CommandError when QEMU cannot write, ImageError for half a picture.
        """
        require(Action.SCREEN, await self._vm.state(), self._vm.name)
        # In the VM's own folder, which goes with the process: QEMU overwrites
        # whatever has the name, and may not be let into the user's folders.
        name = f"screen-{os.getpid()}-{secrets.token_hex(4)}.png"
        file = self._vm.paths.run / name
        try:
            await self._vm.execute(Screendump(filename=str(file), format="png"))
            return _checked(await asyncio.to_thread(file.read_bytes))
        except CommandError as error:
            if "no console" in error.desc:
                raise self._no_screen() from error
            raise
        finally:
            file.unlink(missing_ok=True)

    async def shot(self, path: Path) -> Picture:
        """Writes what the screen shows to a PNG file, which is replaced as a
        whole or not at all.

        Raises as `picture` does, and ImageError when it cannot be written.
        """
        with whole(path, replace=True, durable=False) as fresh:
            picture = await self.picture()
            try:
                await asyncio.to_thread(fresh.write_bytes, picture.png)
            except OSError as error:
                raise ImageError(f"cannot write: {path}: {error.strerror}") from error
        return picture

    async def server(self) -> Server:
        """Where viewers find the screen (query-vnc, query-spice).

        Raises StateError when the VM is off, or nothing serves its screen.
        """
        require(Action.SCREEN, await self._vm.state(), self._vm.name)
        vnc = await self._known(QueryVnc())
        if vnc is not None and vnc.enabled:
            locked = vnc.auth not in (None, "none")
            service = vnc.service or ""
            if vnc.family == "unix":
                return Server(protocol="vnc", path=Path(service), locked=locked)
            host, port = vnc.host or "", int(service)
            return Server(protocol="vnc", host=host, port=port, locked=locked)
        spice = await self._known(QuerySpice())
        if spice is None or not spice.enabled:
            raise self._no_screen("its screen is served nowhere")
        locked = spice.auth not in (None, "none")
        host = spice.host or ""
        if spice.port is None:
            return Server(protocol="spice", path=Path(host), locked=locked)
        return Server(protocol="spice", host=host, port=spice.port, locked=locked)

    async def uri(self) -> str:
        """The server's URI; raises as `server` does."""
        return (await self.server()).uri

    async def set_password(
        self, password: str | None = None, *, lifetime: float = PASSWORD_LIFETIME
    ) -> str:
        """Lets in who knows a password, for ``lifetime`` seconds (set_password,
        expire_password); gives it, a random one unless it was given.

        Viewers that are connected stay so, beyond its end too. Raises UsageError
        for a password or lifetime that cannot be, StateError when the server was
        started without one.
        """
        if not 1 <= lifetime <= _LONGEST_LIFETIME:
            raise UsageError(f"not a lifetime: {lifetime:g} s (1s to 8760h)")
        server = await self.server()
        longest = _LONGEST[server.protocol]
        if password is None:
            random = (secrets.choice(_LETTERS) for _ in range(min(longest, 12)))
            password = "".join(random)
        _check_password(password, server.protocol)
        if not server.locked:
            raise self._not_locked()
        # In this order: whatever fails, no password is left that lives on.
        protocol = server.protocol
        await self._vm.execute(ExpirePassword(protocol=protocol, time="now"))
        await self._vm.execute(SetPassword(protocol=protocol, password=password))
        end = f"+{round(lifetime)}"
        await self._vm.execute(ExpirePassword(protocol=protocol, time=end))
        return password

    async def _known(self, command: Command[R]) -> R | None:
        """A command's reply; None from a QEMU that was built without it."""
        try:
            return await self._vm.execute(command)
        except CommandError as error:
            if error.class_ == "CommandNotFound":
                return None
            raise

    def _no_screen(self, reason: str = "it has no screen") -> StateError:
        name = self._vm.name
        return StateError(
            f"show the screen of {name}", State.RUNNING, reason,
            hint=_NO_SCREEN.replace("NAME", name),
        )  # fmt: skip

    def _not_locked(self) -> StateError:
        name = self._vm.name
        return StateError(
            f"set a password for the screen of {name}", State.RUNNING,
            "it was started without one, for whoever can reach it",
            hint=f"qemuctl edit {name} (display: {{type: vnc, password: true}}), "
            "then restart it",
        )  # fmt: skip


def _check_password(password: str, protocol: Protocol) -> None:
    longest = _LONGEST[protocol]
    if not password:
        raise UsageError("the password is empty")
    if not (password.isascii() and password.isprintable()):
        raise UsageError("the password holds more than plain ASCII characters")
    if len(password) > longest:
        raise UsageError(
            f"the password is too long: {len(password)} characters, "
            f"{protocol} takes {longest}"
        )


def _checked(png: bytes) -> Picture:
    """Raises ImageError for half a PNG: QEMU does not notice a full disk."""
    if not (png.startswith(_PNG_HEAD) and png.endswith(_PNG_END)):
        raise ImageError(
            f"QEMU wrote half a picture: {len(png)} bytes",
            hint="is there room where its sockets are? (df /tmp)",
        )
    size = len(_PNG_HEAD)
    width, height = (int.from_bytes(png[at : at + 4]) for at in (size, size + 4))
    return Picture(png=png, width=width, height=height)
