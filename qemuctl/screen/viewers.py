"""Programs that show a VM's screen, and what each is told to open.

Not every viewer can open a unix socket: remote-viewer does so for SPICE only.
For such a one `bridge` is a TCP port that leads to the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from qemuctl.errors import HostError
from qemuctl.screen.screen import Server, bracketed
from qemuctl.structs import Struct

_VNC_BASE = 5900
_CHUNK = 65536
_SOCKETS = Path("/proc/net/tcp")


def _uri(server: Server) -> str:
    return server.uri


def _display(server: Server) -> str:
    """As GTK-VNC's own viewer has it: a path, or a host and its display."""
    return str(server.path or f"{server.host}:{server.port - _VNC_BASE}")


def _port(server: Server) -> str:
    """As TigerVNC has it: a path, or a host and its port."""
    return str(server.path or f"{bracketed(server.host)}::{server.port}")


class Viewer(Struct):
    """One program: how it names a server, and which it can open."""

    program: str
    target: Callable[[Server], str]
    protocols: tuple[str, ...] = ("vnc",)
    unix: tuple[str, ...] = ("vnc",)

    def argv(self, server: Server) -> list[str]:
        """The command line that shows ``server``."""
        return [self.program, self.target(server)]

    def opens(self, server: Server) -> bool:
        """Whether it gets there without a bridge."""
        return server.path is None or server.protocol in self.unix


_BOTH = ("vnc", "spice")
# The one that does most comes first. virt-viewer itself looks for a VM of
# libvirt's: it is left for where the name stands for remote-viewer.
VIEWERS = (
    Viewer(program="remote-viewer", target=_uri, protocols=_BOTH, unix=("spice",)),
    Viewer(program="gvncviewer", target=_display),
    Viewer(program="vncviewer", target=_port),
    Viewer(program="virt-viewer", target=_uri, protocols=_BOTH, unix=("spice",)),
)


def choose(server: Server) -> Viewer:
    """The first viewer on PATH that can show ``server``.

    Raises HostError that says what to install.
    """
    able = [viewer for viewer in VIEWERS if server.protocol in viewer.protocols]
    for viewer in able:
        if shutil.which(viewer.program):
            return viewer
    names = ", ".join(viewer.program for viewer in able)
    raise HostError(
        f"no viewer on PATH: {names}",
        hint="sudo apt-get install virt-viewer (dnf: the same name), "
        f"or point a {server.protocol.upper()} viewer of your own at\n{server.uri}",
    )


@asynccontextmanager
async def bridge(path: Path) -> AsyncIterator[int]:
    """A TCP port on 127.0.0.1 that leads to a unix socket, while the block lasts.

    Only this process and those that it has started get through: a guest, too, reaches
    the port, through a QEMU of the same user (10.0.2.2).
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            ends = (writer.get_extra_info(end) for end in ("peername", "sockname"))
            inode = _inode(*ends)
            if inode is not None and await asyncio.to_thread(_is_ours, inode):
                await _join(reader, writer, path)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _inode(peer: tuple[str, int], own: tuple[str, int]) -> int | None:
    """The socket at the other end of a TCP connection within this host (proc(5)).

    None when it is not known, as for one that has ended already.
    """
    wanted = [_as_listed(*peer), _as_listed(*own)]
    for line in _SOCKETS.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == wanted:
            return int(fields[9])
    return None


def _is_ours(inode: int) -> bool:
    """Whether this process, or one that it has started, has the socket."""
    own = psutil.Process()
    return any(
        f"socket:[{inode}]" in _open(process.pid)
        for process in (own, *own.children(recursive=True))
    )


def _open(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):  # it has ended
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it is closed
                found.append(str(each.readlink()))
    return found


def _as_listed(host: str, port: int) -> str:
    # The address is in network order and written as if it were a number.
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path
) -> None:
    far_reader, far_writer = await asyncio.open_unix_connection(path)
    with contextlib.closing(far_writer):
        ways = [
            asyncio.create_task(_pump(reader, far_writer)),
            asyncio.create_task(_pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
