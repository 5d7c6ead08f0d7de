"""`screenshot`, `sendkey`, `type`, `display`, `view`: the screen and the keyboard."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qemuctl.cli.declare import Argument, Option, command
from qemuctl.cli.output import note, print_fields, print_json, working
from qemuctl.cli.parameters import Json, Name, seconds
from qemuctl.cli.running import run_async
from qemuctl.errors import UsageError

if TYPE_CHECKING:
    from qemuctl.registry.states import Action
    from qemuctl.screen.screen import Picture, Server
    from qemuctl.screen.viewers import Viewer
    from qemuctl.vm.vm import Vm

Hold = Annotated[
    str,
    Option("--hold", metavar="TIME", help="between press and release: 10ms"),
]


async def _attached(name: str, action: Action) -> Vm:
    from qemuctl.vm.attach import attach

    return await attach(name, action)


@command("screenshot", example="qemuctl screenshot web out.png")
def screenshot(
    name: Name,
    out: Annotated[
        Path, Argument(metavar="OUT", help="a PNG file; - is standard output")
    ],
) -> None:
    """Write what the screen shows to a PNG file, in the place of one that is there.

    The VM may be paused, booting, crashed, or in a text mode; it needs a screen
    (--display vnc), but no viewer.
    """
    if str(out) == "-" and sys.stdout.isatty():
        raise UsageError("a picture is not for a terminal", hint="write > out.png")
    picture = run_async(_screenshot(name, out))
    if str(out) == "-":
        sys.stdout.buffer.write(picture.png)
        sys.stdout.buffer.flush()
    else:
        note(f"wrote {out}: PNG, {picture.width} x {picture.height}")


async def _screenshot(name: str, out: Path) -> Picture:
    from qemuctl.registry.states import Action

    async with await _attached(name, Action.SCREEN) as vm:
        if str(out) == "-":
            return await vm.screen.picture()
        return await vm.screen.shot(out)


@command("sendkey", example="qemuctl sendkey web ctrl-alt-delete")
def sendkey(
    name: Name,
    keys: Annotated[
        list[str],
        Argument(metavar="KEYS…", help="such as ctrl-alt-f2, ret, shift-a"),
    ],
    hold: Hold = "10ms",
) -> None:
    """Press keys together, and release them; several combinations one by one.

    Names are those of QEMU's QKeyCode (ret, esc, spc, pgup, kp_1, meta_l), the
    usual others (enter, escape, del, win), and the characters of a US keyboard.
    """
    from qemuctl.screen.keys import parse_keys

    for combination in keys:
        parse_keys(combination)  # what is no key needs no VM to be refused
    run_async(_sendkey(name, keys, _milliseconds(hold)))


async def _sendkey(name: str, keys: list[str], hold: int) -> None:
    from qemuctl.registry.states import Action

    async with await _attached(name, Action.KEYS) as vm:
        await vm.keyboard.send(*keys, hold_ms=hold)


@command("type", example='qemuctl type web "root" --enter')
def type_(
    name: Name,
    text: Annotated[
        str | None, Argument(metavar="TEXT", help="ASCII; a newline is Enter")
    ] = None,
    enter: Annotated[bool, Option("--enter", help="Enter at its end")] = False,
    stdin: Annotated[
        bool, Option("--stdin", help="the text is on standard input: a secret")
    ] = False,
    hold: Hold = "10ms",
) -> None:
    """Type a text on a US keyboard, in order.

    It takes 24 ms for each character, 48 with Shift; a guest that misses some
    needs a longer --hold, and one that does not read yet misses all: see wait.
    The text is not written to the VM's logs.
    """
    from qemuctl.screen.keys import strokes

    if (text is None) != stdin:
        raise UsageError("give either TEXT or --stdin")
    if text is None:
        text = sys.stdin.buffer.read().decode(errors="surrogateescape")
    text += "\n" * enter
    count = len(strokes(text))
    with working(f"typing {count} characters"):
        run_async(_type(name, text, _milliseconds(hold)))


async def _type(name: str, text: str, hold: int) -> None:
    from qemuctl.registry.states import Action

    async with await _attached(name, Action.KEYS) as vm:
        await vm.keyboard.type(text, hold_ms=hold)


def _milliseconds(hold: str) -> int:
    return round(seconds(hold) * 1000)


@command("display", example="qemuctl display web --vnc-password")
def display(
    name: Name,
    password: Annotated[
        bool,
        Option("--vnc-password", help="set a random one (SPICE too), print it"),
    ] = False,
    ask: Annotated[
        bool, Option("--ask", help="with --vnc-password: read it from you")
    ] = False,
    expires: Annotated[
        str, Option("--expires", metavar="TIME", help="of the password")
    ] = "5m",
    json: Json = False,
) -> None:
    """Print the URI of a VM's screen, for a viewer; set a password for it.

    A password is possible where the spec says display: {password: true}; the
    screen is closed until one is set, and again when it has expired. Viewers that
    are connected then stay.
    """
    if ask and not password:
        raise UsageError("--ask goes with --vnc-password")
    lifetime = seconds(expires)
    given = _ask() if ask else None
    server, word = run_async(_display(name, password, given, lifetime))
    found: dict[str, object] = {"uri": server.uri}
    if word is not None:
        found |= {} if ask else {"password": word}
        found |= {"expires": round(lifetime) if json else f"in {expires}"}
    if json:
        about = {"name": name, "type": server.protocol, "locked": server.locked}
        print_json({**about, **found})
    elif word is None:
        print(server.uri)
        if server.locked:
            note("it asks for a password: --vnc-password sets one")
    else:
        print_fields(found)


def _ask() -> str:
    """A password that its user chose: typed unseen, or a line from a pipe."""
    from getpass import getpass

    if sys.stdin is not None and sys.stdin.isatty():
        return getpass("password: ")
    return sys.stdin.readline().rstrip("\n") if sys.stdin is not None else ""


async def _display(
    name: str, password: bool, given: str | None, lifetime: float
) -> tuple[Server, str | None]:
    from qemuctl.registry.states import Action

    async with await _attached(name, Action.SCREEN) as vm:
        server = await vm.screen.server()
        if not password:
            return server, None
        return server, await vm.screen.set_password(given, lifetime=lifetime)


@command("view", example="qemuctl view web")
def view(name: Name) -> None:
    """Show a VM's screen in a window; the VM goes on when that is closed.

    The window is that of remote-viewer, gvncviewer, vncviewer or virt-viewer: the
    first that is installed.
    """
    from qemuctl.command_server.become import become
    from qemuctl.screen.viewers import choose

    server = run_async(_server(name))
    viewer = choose(server)
    if server.locked:
        note(f"it asks for a password: qemuctl display {name} --vnc-password")
    if viewer.opens(server):
        become(viewer.argv(server))
    raise SystemExit(run_async(_through_bridge(viewer, server)))


async def _server(name: str) -> Server:
    from qemuctl.registry.states import Action

    async with await _attached(name, Action.SCREEN) as vm:
        return await vm.screen.server()


async def _through_bridge(viewer: Viewer, server: Server) -> int:
    """Runs a viewer that cannot open the socket itself, to its end."""
    import asyncio

    from qemuctl.screen.viewers import bridge

    assert server.path is not None
    async with bridge(server.path) as port:
        near = replace(server, path=None, host="127.0.0.1", port=port)
        process = await asyncio.create_subprocess_exec(*viewer.argv(near))
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await asyncio.shield(process.wait())
