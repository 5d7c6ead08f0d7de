"""Which viewer is started with what, and the port that leads to a socket."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuctl.errors import HostError
from qemuctl.screen.screen import Server
from qemuctl.screen.viewers import bridge, choose

UNIX = Server(protocol="vnc", path=Path("/run/a b/vnc.sock"))
TCP = Server(protocol="vnc", host="127.0.0.1", port=5901)
SIX = Server(protocol="vnc", host="::1", port=5902)
SPICE = Server(protocol="spice", path=Path("/run/a b/spice.sock"))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.setenv("PATH", str(tmp_path))

    def made(program: str) -> None:
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o700)

    return made


@pytest.mark.parametrize(
    ("server", "uri"),
    [
        (UNIX, "vnc+unix:///run/a%20b/vnc.sock"),
        (TCP, "vnc://127.0.0.1:5901"),
        (SIX, "vnc://[::1]:5902"),
        (SPICE, "spice+unix:///run/a b/spice.sock"),
        (Server(protocol="spice", host="::1", port=1), "spice://[::1]:1"),
    ],
)
def test_a_server_has_its_uri(server: Server, uri: str) -> None:
    assert server.uri == uri


@pytest.mark.parametrize(
    ("program", "server", "argument", "opens"),
    [
        ("remote-viewer", UNIX, UNIX.uri, False),
        ("remote-viewer", TCP, TCP.uri, True),
        ("remote-viewer", SPICE, SPICE.uri, True),
        ("virt-viewer", TCP, TCP.uri, True),
        ("gvncviewer", UNIX, "/run/a b/vnc.sock", True),
        ("gvncviewer", TCP, "127.0.0.1:1", True),
        ("vncviewer", UNIX, "/run/a b/vnc.sock", True),
        ("vncviewer", TCP, "127.0.0.1::5901", True),
        ("vncviewer", SIX, "[::1]::5902", True),
    ],
)
def test_a_viewer_is_told_the_server_in_its_own_words(
    install: Callable[[str], None],
    program: str,
    server: Server,
    argument: str,
    opens: bool,
) -> None:
    install(program)
    viewer = choose(server)
    assert viewer.argv(server) == [program, argument]
    assert viewer.opens(server) is opens


def test_the_best_one_that_is_there_is_taken(install: Callable[[str], None]) -> None:
    for program in ("virt-viewer", "vncviewer", "gvncviewer", "remote-viewer"):
        install(program)
        assert choose(UNIX).program == program


def test_a_vnc_viewer_is_none_for_spice(install: Callable[[str], None]) -> None:
    install("vncviewer")
    with pytest.raises(HostError, match="no viewer") as caught:
        choose(SPICE)
    assert "virt-viewer" in str(caught.value.hint)
    assert SPICE.uri in str(caught.value.hint)


async def echo(path: Path) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    return await asyncio.start_unix_server(serve, path)


async def test_the_bridge_leads_to_the_socket_and_ends(tmp_path: Path) -> None:
    async with await echo(tmp_path / "s"):
        async with bridge(tmp_path / "s") as port:
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"there")
                assert await reader.readexactly(11) == b"hello there"
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await reader.readexactly(6)
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)


CONNECT = """
import socket, sys
print(socket.create_connection(("127.0.0.1", int(sys.argv[1]))).recv(6))
"""


@pytest.mark.parametrize(
    ("begin", "answer"),
    [((), b"b'hello '\n"), (("setsid", "--fork"), b"b''\n")],
    ids=["a viewer", "not of ours"],
)
async def test_the_bridge_lets_through_what_it_was_made_for(
    tmp_path: Path, begin: tuple[str, ...], answer: bytes
) -> None:
    """A QEMU of the same user, behind which a guest is, is none of our processes."""
    async with await echo(tmp_path / "s"), bridge(tmp_path / "s") as port:
        process = await asyncio.create_subprocess_exec(
            *begin, sys.executable, "-c", CONNECT, str(port), stdout=-1
        )
        assert (await process.communicate())[0] == answer


async def test_the_bridge_to_nowhere_hangs_up(tmp_path: Path) -> None:
    async with bridge(tmp_path / "nowhere") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
