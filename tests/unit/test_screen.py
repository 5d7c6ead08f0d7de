"""Odd answers about the screen: half a picture, a QEMU built without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemuctl.errors import CommandError, ImageError, StateError, UsageError
from qemuctl.paths import VmPaths
from qemuctl.qmp.commands import QueryVnc, VncInfo
from qemuctl.qmp.screen import (
    ExpirePassword,
    QuerySpice,
    Screendump,
    SetPassword,
    SpiceInfo,
)
from qemuctl.registry.states import State
from qemuctl.screen.screen import Screen

WHOLE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\7\0\0\0\5\x08\2\0\0\0....IEND\xaeB`\x82"
MISSING = CommandError("query-vnc", "CommandNotFound", "not found")
NO_CONSOLE = CommandError(
    "screendump", "GenericError", "There is no console to take a screendump from"
)


class Vm:
    """As much of a VM as a screen needs; ``answers`` by command."""

    name = "web"

    def __init__(self, folder: Path, **answers: Any) -> None:
        self.paths = VmPaths(folder, folder)
        self.answers, self.sent = answers, []

    async def state(self) -> State:
        return State.PAUSED

    async def execute(self, command: Any) -> Any:
        self.sent.append(command)
        answer = self.answers.get(type(command).__name__, {})
        if isinstance(answer, Exception):
            raise answer
        if isinstance(command, Screendump):
            Path(command.filename).write_bytes(answer)
        return answer


@pytest.fixture
def vm(tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "run").mkdir()
    return lambda **answers: Vm(tmp_path / "run", **answers)


async def test_a_whole_picture_takes_the_place_of_the_old(
    vm: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    out.write_text("old")
    web = vm(Screendump=WHOLE)
    picture = await Screen(web).shot(out)
    assert (picture.png, picture.width, picture.height) == (WHOLE, 7, 5)
    assert out.read_bytes() == WHOLE
    assert list(web.paths.run.iterdir()) == []


@pytest.mark.parametrize("half", [b"", WHOLE[:-1], WHOLE[8:], b"P6 1 1 255\n..."])
async def test_half_a_picture_is_none(
    vm: Callable[..., Any], tmp_path: Path, half: bytes
) -> None:
    out = tmp_path / "out.png"
    out.write_text("old")
    web = vm(Screendump=half)
    with pytest.raises(ImageError, match="half a picture"):
        await Screen(web).shot(out)
    assert out.read_text() == "old"
    assert list(web.paths.run.iterdir()) == []
    assert len(list(tmp_path.iterdir())) == 2


async def test_no_screen_and_other_refusals_are_told_apart(
    vm: Callable[..., Any],
) -> None:
    with pytest.raises(StateError, match="it has no screen") as caught:
        await Screen(vm(Screendump=NO_CONSOLE)).picture()
    assert "qemuctl edit web" in str(caught.value.hint)
    other = CommandError("screendump", "GenericError", "Enable PNG support")
    with pytest.raises(CommandError, match="Enable PNG"):
        await Screen(vm(Screendump=other)).picture()


@pytest.mark.parametrize(
    ("vnc", "spice", "uri"),
    [
        (
            VncInfo(enabled=True, family="unix", service="/r/v", host="", auth="none"),
            MISSING,
            "vnc+unix:///r/v",
        ),
        (
            VncInfo(enabled=True, family="ipv4", service="5901", host="127.0.0.1"),
            MISSING,
            "vnc://127.0.0.1:5901",
        ),
        (
            VncInfo(enabled=False),
            SpiceInfo(enabled=True, host="/r/s"),
            "spice+unix:///r/s",
        ),
        (MISSING, SpiceInfo(enabled=True, host="::1", port=9), "spice://[::1]:9"),
    ],
)
async def test_the_server_is_the_one_that_runs(
    vm: Callable[..., Any], vnc: Any, spice: Any, uri: str
) -> None:
    assert await Screen(vm(QueryVnc=vnc, QuerySpice=spice)).uri() == uri


@pytest.mark.parametrize("vnc", [MISSING, VncInfo(enabled=False)])
@pytest.mark.parametrize("spice", [MISSING, SpiceInfo(enabled=False)])
async def test_no_server_is_said(vm: Callable[..., Any], vnc: Any, spice: Any) -> None:
    with pytest.raises(StateError, match="served nowhere"):
        await Screen(vm(QueryVnc=vnc, QuerySpice=spice)).server()


async def test_the_password_never_lives_without_an_end(vm: Callable[..., Any]) -> None:
    locked = VncInfo(enabled=True, family="unix", service="/r/v", auth="vnc")
    web = vm(QueryVnc=locked)
    word = await Screen(web).set_password(lifetime=90)
    assert len(word) == 8
    asked, *steps = web.sent
    assert isinstance(asked, QueryVnc)
    assert steps == [
        ExpirePassword(protocol="vnc", time="now"),
        SetPassword(protocol="vnc", password=word),
        ExpirePassword(protocol="vnc", time="+90"),
    ]
    assert word not in repr(steps)
    assert await Screen(web).set_password() != word


@pytest.mark.parametrize(
    ("password", "lifetime", "says"),
    [
        ("", 60, "empty"),
        ("nine char", 60, "too long: 9 characters, vnc takes 8"),
        ("pä", 60, "ASCII"),
        ("a\n", 60, "ASCII"),
        ("good", 0.5, "lifetime"),
    ],
)
async def test_an_impossible_password_is_refused_before_anything_is_set(
    vm: Callable[..., Any], password: str, lifetime: float, says: str
) -> None:
    web = vm(QueryVnc=VncInfo(enabled=True, family="unix", service="/r/v", auth="vnc"))
    with pytest.raises(UsageError, match=says):
        await Screen(web).set_password(password, lifetime=lifetime)
    assert not any(isinstance(c, (SetPassword, ExpirePassword)) for c in web.sent)


async def test_an_open_server_takes_no_password(vm: Callable[..., Any]) -> None:
    web = vm(
        QueryVnc=MISSING, QuerySpice=SpiceInfo(enabled=True, host="/s", auth="none")
    )
    with pytest.raises(StateError, match="started without one"):
        await Screen(web).set_password()
    assert [type(c) for c in web.sent] == [QueryVnc, QuerySpice]
