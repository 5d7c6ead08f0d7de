"""The screen of a real VM: what is seen, by whom, and where."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qemuctl
from qemuctl.errors import HostError, StateError, UsageError
from qemuctl.host import inspect_host
from tests.guest.conftest import Home
from tests.guest.eye import check, let_in, security

# -- the picture ------------------------------------------------------------


def test_a_picture_shows_what_a_text_mode_screen_shows(
    shared: Home, eye: str, tmp_path: Path
) -> None:
    out = tmp_path / "öut file.png"
    out.write_text("an older one")
    said = shared.words("screenshot", eye, out)
    assert said == f"wrote {out}: PNG, 720 x 400\n"
    check(out.read_bytes())
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert not list(shared.path.rglob("screen-*"))
    check(shared.run("screenshot", eye, "-").stdout)


def test_a_paused_vm_shows_its_screen_and_takes_no_keys(
    shared: Home, eye: str, tmp_path: Path, echo: Callable[[], str]
) -> None:
    shared.run("pause", eye)
    try:
        shared.run("screenshot", eye, tmp_path / "out.png")
        check((tmp_path / "out.png").read_bytes())
        for command in (("sendkey", eye, "a"), ("type", eye, "abc")):
            said = shared.words(*command, check=1)
            assert "cannot send keys to eye: the VM is paused" in said
            assert "qemuctl resume eye" in said
    finally:
        shared.run("resume", eye)
    shared.run("sendkey", eye, "z")
    assert echo() == "z"


@pytest.mark.parametrize("out", ["/proc/out.png", "nowhere/out.png", "."])
def test_a_picture_that_cannot_be_written_changes_nothing(
    shared: Home, eye: str, tmp_path: Path, out: str
) -> None:
    said = shared.words("screenshot", eye, tmp_path / out, check=1)
    assert "error: " in said
    assert str(tmp_path / out).removesuffix("/out.png") in said
    assert list(tmp_path.iterdir()) == []


def test_a_vm_without_a_screen_says_how_to_get_one(
    here: Home, sector: Path, tmp_path: Path
) -> None:
    here.run("create", "blind", "--disk", f"path={sector}", "--memory", "64M")
    for command in ("display", "view"):
        said = here.words(command, "blind", check=1)
        assert "cannot show the screen of blind: the VM is off" in said
    here.run("start", "blind")
    out = tmp_path / "out.png"
    said = here.words("screenshot", "blind", out, check=1)
    assert "it has no screen" in said
    assert "display: vnc" in said
    assert not out.exists()
    assert "no screen" in here.words("display", "blind", check=1).replace(
        "its screen is served nowhere", "no screen"
    )
    # A keyboard it has all the same.
    here.run("wait", "blind", "--for", "serial:ok")
    here.run("type", "blind", "seen")
    here.run("wait", "blind", "--for", "serial:seen")
    here.run("kill", "blind")
    assert "the VM is off" in here.words("sendkey", "blind", "a", check=1)
    assert "start it with" in here.words("screenshot", "blind", out, check=1)


# -- viewers and passwords --------------------------------------------------


def test_the_display_is_a_socket_that_speaks_vnc(shared: Home, eye: str) -> None:
    uri = shared.text("display", eye).strip()
    path = uri.removeprefix("vnc+unix://")
    assert path.endswith("/eye/vnc.sock")
    assert security(path) == [1]
    found = json.loads(shared.text("display", eye, "--json"))
    assert found == {"name": "eye", "type": "vnc", "locked": False, "uri": uri}


def test_a_password_needs_a_vm_that_was_started_with_one(
    shared: Home, eye: str
) -> None:
    said = shared.words("display", eye, "--vnc-password", check=1)
    assert "it was started without one" in said
    assert "password: true" in said


@pytest.fixture
def closed(here: Home, sector: Path) -> Iterator[str]:
    here.run(
        "create", "shut", "--disk", f"path={sector}", "--memory", "64M",
        "--display", "vnc,password=on",
    )  # fmt: skip
    here.run("start", "shut")
    yield "shut"
    here.run("kill", "shut")


def test_a_closed_screen_opens_to_its_password_until_that_expires(
    here: Home, closed: str, until: Callable[..., Any]
) -> None:
    path = here.text("display", closed).strip().removeprefix("vnc+unix://")
    assert security(path) == [2]
    assert not let_in(path, "")
    found = here.text("display", closed, "--vnc-password")
    password = re.search(r"^password: +(\S{8})$", found, re.MULTILINE)
    assert password is not None
    assert "in 5m" in found
    assert let_in(path, password[1])
    assert not let_in(path, "wrong")
    other = ["display", closed, "--vnc-password", "--ask", "--expires", "2s", "--json"]
    shown = here.text(*other, input=b"own word\n")
    set_at = time.monotonic()
    assert json.loads(shown)["expires"] == 2
    assert "own word" not in shown
    assert not let_in(path, password[1])
    if time.monotonic() - set_at < 0.5:
        assert let_in(path, "own word")
    until(lambda: not let_in(path, "own word"), 60)
    assert security(path) == [2]
    state = here.path / "state/vms" / closed
    kept = "".join(file.read_text("latin-1") for file in state.glob("q*"))
    assert password[1] not in kept
    assert "own word" not in kept


def test_an_impossible_password_leaves_the_old_one(here: Home, closed: str) -> None:
    path = here.text("display", closed).strip().removeprefix("vnc+unix://")
    set_ = ["display", closed, "--vnc-password", "--ask"]
    here.run(*set_, input=b"good\n")
    for wrong, says in (
        (b"nine chars", "8"), (b"\n", "empty"), ("é\n".encode(), "ASCII")
    ):  # fmt: skip
        assert says in here.words(*set_, input=wrong, check=2)
    assert "lifetime" in here.words(*set_, "--expires", "0", input=b"x\n", check=2)
    assert let_in(path, "good")


VIEWER = """#!/usr/bin/env python3
import re, socket, sys
print(" ".join(sys.argv[1:]), flush=True)
port = re.search(r"127.0.0.1:([0-9]+)", sys.argv[1])
if port:
    near = socket.create_connection(("127.0.0.1", int(port[1])), timeout=60)
    print(near.recv(12).decode(), flush=True)
sys.exit(7)
"""


def view(
    home: Home, vm: str, programs: Path, status: int
) -> subprocess.CompletedProcess[bytes]:
    """`view` where no other viewers are installed than these."""
    python = programs / "bin"
    python.mkdir()
    (python / "python3").symlink_to(sys.executable)
    done = subprocess.run(
        home.command("view", vm),
        env=home.env | {"PATH": f"{programs}:{python}"},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


@pytest.mark.parametrize("program", ["remote-viewer", "gvncviewer", "vncviewer"])
def test_a_viewer_gets_to_the_screen(
    shared: Home, eye: str, tmp_path: Path, program: str
) -> None:
    viewer = tmp_path / program
    viewer.write_text(VIEWER)
    viewer.chmod(0o700)
    done = view(shared, eye, tmp_path, 7)
    socket_path = shared.text("display", eye).strip().removeprefix("vnc+unix://")
    if program == "remote-viewer":  # which cannot open it
        assert re.fullmatch(rb"vnc://127\.0\.0\.1:[0-9]+\nRFB 003\.008\n+", done.stdout)
    else:
        assert done.stdout.decode() == f"{socket_path}\n"


def test_without_a_viewer_it_says_what_to_install(
    shared: Home, eye: str, tmp_path: Path
) -> None:
    said = view(shared, eye, tmp_path, 1).stderr.decode()
    assert "no viewer on PATH: remote-viewer, gvncviewer, vncviewer" in said
    assert "apt-get install virt-viewer" in said
    assert "vnc+unix:///" in said


# -- the library ------------------------------------------------------------


async def test_the_library_looks_and_types(
    home: Path, sector: Path, tmp_path: Path
) -> None:
    spec = qemuctl.Spec(
        name="lib", nics=(), memory={"size": "64M"}, display={"type": "vnc"},
        disks=({"path": str(sector)},),
    )  # fmt: skip
    async with qemuctl.launch(spec) as vm:
        await vm.wait_console("ok", timeout=60)
        check((await vm.screen.shot(tmp_path / "a.png")).png)
        await vm.keyboard.type("Hello", hold_ms=5)
        await vm.keyboard.send("shift-1", "ret")
        await vm.wait_console("Hello!", timeout=60)
        assert await vm.screen.uri() == f"vnc+unix://{vm.paths.vnc_socket}"
        with pytest.raises(UsageError, match="'é'"):
            await vm.keyboard.type("é")
        with pytest.raises(StateError, match="without one"):
            await vm.screen.set_password()


async def test_a_spice_server_is_found_and_locked(home: Path, qemu: Path) -> None:
    spec = qemuctl.Spec(
        name="sp", nics=(), memory={"size": "64M"},
        display={"type": "spice", "password": True},
    )  # fmt: skip
    if "spice" not in inspect_host(spec).binary.options:
        with pytest.raises(HostError, match="'-spice'"):
            async with qemuctl.launch(spec):
                pass
        return
    async with qemuctl.launch(spec) as vm:
        server = await vm.screen.server()
        assert (server.uri, server.locked) == (
            f"spice+unix://{vm.paths.spice_socket}",
            True,
        )
        assert len(await vm.screen.set_password(lifetime=5)) == 12
        with pytest.raises(UsageError, match="spice takes 60"):
            await vm.screen.set_password("x" * 61)
