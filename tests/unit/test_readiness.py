"""What ends the wait for a guest's agent before its time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qemuctl.connection import readiness
from qemuctl.connection.readiness import boot_failure, unless_hopeless
from qemuctl.errors import NotReady

PANIC = "[    1.79] Kernel panic - not syncing: VFS: Unable to mount root fs"
BIOS = "SeaBIOS (version 1.16)\nBooting from Hard Disk...\nNo bootable device.\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BIOS, "No bootable device."),
        (f"x\n{PANIC}\nCall Trace:\n", PANIC),
        ("BdsDxe: No bootable option or device was found.", None),
        ("Missing operating system", None),
        ("This is not a bootable disk.  Please insert", None),
        ("ALERT!  /dev/vda1 does not exist.  Dropping to a shell!", None),
    ],
)
def test_a_boot_that_failed_is_told_by_its_line(text: str, line: str | None) -> None:
    assert boot_failure(text) == (line or text)


@pytest.mark.parametrize(
    "text",
    ["", "login: ", "echo Kernel panic - not syncing: no", BIOS + BIOS[:40],
     f"{PANIC}\n[    0.0] Linux version 6.1"],
)  # fmt: skip
def test_a_machine_that_was_reset_since_has_another_chance(text: str) -> None:
    assert boot_failure(text) is None


async def test_a_failure_that_comes_later_in_parts_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("SeaBIOS\n")
    waiting = asyncio.create_task(unless_hopeless(asyncio.Event().wait(), log))
    with log.open("a") as file:
        for part in ("No boot", "able device.\n"):
            file.write(part)
            file.flush()
            await asyncio.sleep(0)
    with pytest.raises(NotReady, match="does not boot: No bootable"):
        await waiting


async def test_an_ssh_server_that_answers_ends_the_wait_for_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"a line before\r\nSSH-2.0-x\r\n")
        await writer.drain()
        writer.close()

    monkeypatch.setattr(readiness, "_ASK_AFTER", 0)
    monkeypatch.setattr(readiness, "_AGENT_LATER", 0)
    log = tmp_path / "none"
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        forwards = [f"127.0.0.1:{port}->22"]
        with pytest.raises(NotReady, match="ssh server does") as caught:
            await unless_hopeless(asyncio.Event().wait(), log, forwards)
        assert caught.value.by_ssh
        assert await unless_hopeless(asyncio.sleep(0, "came"), log, forwards) == "came"


async def test_what_follows_a_failure_on_the_console_is_waited_for(
    tmp_path: Path,
) -> None:
    log = tmp_path / "serial.log"
    log.write_text(f"{PANIC}\n")

    async def trace() -> None:
        with log.open("a") as file:
            for part in ("Call Trace:\n", "Kernel Offset: 0x1000000\n"):
                await asyncio.sleep(readiness._PAUSE / 5)
                file.write(part)
                file.flush()

    writing = asyncio.create_task(trace())
    with pytest.raises(NotReady, match="VFS: Unable to mount root fs"):
        await unless_hopeless(asyncio.Event().wait(), log)
    assert writing.done()


async def test_a_console_that_never_stops_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_REST", 0.2)
    log = tmp_path / "serial.log"
    log.write_text(f"{PANIC}\n")

    async def noise() -> None:
        while True:
            with log.open("a") as file:
                file.write("more\n")
            await asyncio.sleep(0.01)

    making = asyncio.create_task(noise())
    with pytest.raises(NotReady):
        await unless_hopeless(asyncio.Event().wait(), log)
    making.cancel()
    await asyncio.wait([making])
