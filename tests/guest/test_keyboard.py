"""What is typed on a VM's keyboard arrives in it, in order."""

from __future__ import annotations

import string
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qemuctl
from qemuctl.errors import StateError
from qemuctl.screen.keys import KEYS
from tests.guest.conftest import Home
from tests.guest.test_schema import asked

EVERYTHING = "".join(map(chr, range(32, 127))) + "\t\n"


def test_a_long_text_with_every_character_arrives_in_order(
    shared: Home, eye: str, echo: Callable[[], str]
) -> None:
    text = EVERYTHING * 2 + string.ascii_letters
    assert len(text) > 240
    shared.run("type", eye, text, "--enter")
    assert echo() == (text + "\n").replace("\n", "\r")


def test_a_linux_guest_reads_the_line_that_is_typed(shared: Home, web: str) -> None:
    text = EVERYTHING[1:-2] * 2
    reader = shared.popen(
        "exec", web, "--", "sh", "-c", "exec </dev/tty1; echo ready; head -n1",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"ready\n"
    shared.run("type", web, text, "--enter")
    said, _ = reader.communicate(timeout=60)
    assert said.decode() == f"{text}\n"


def test_a_secret_is_typed_from_standard_input_and_not_written_down(
    shared: Home, eye: str, echo: Callable[[], str]
) -> None:
    shared.run("type", eye, "--stdin", input=b"hunter2\n")
    assert echo() == "hunter2\r"
    log = (shared.path / "state/vms/eye/qmp.jsonl").read_text()
    last = [line for line in log.splitlines() if "send-key" in line][-18:]
    assert not any("qcode" in line for line in last)


@pytest.mark.parametrize(
    ("keys", "arrives"),
    [
        (["a"], "a"),
        (["shift-a", "minus", "-", "ret"], "A--\r"),
        (["Ctrl+C", "esc"], "\x03\x1b"),
    ],
)
def test_keys_arrive_one_after_the_other(
    shared: Home, eye: str, echo: Callable[[], str], keys: list[str], arrives: str
) -> None:
    shared.run("sendkey", eye, *keys)
    assert echo() == arrives


def test_three_keys_at_once_restart_the_guest(
    shared: Home, eye: str, echo: Callable[[], str], until: Callable[..., Any]
) -> None:
    events = shared.path / "state/vms/eye/events.out"
    before = events.read_text().count('"RESET"')
    shared.run("sendkey", eye, "ctrl-alt-delete")
    until(lambda: events.read_text().count('"RESET"') > before)
    until(lambda: "ok\n" in echo())


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["sendkey", "eye", "ctrl-atl-delete"], "did you mean alt"),
        (["sendkey", "eye", "a", "nonsense"], "not a key: 'nonsense'"),
        (["sendkey", "eye", ""], "no key is named"),
        (["sendkey", "eye", "a", "--hold", "0"], "not a time to hold a key"),
        (["type", "eye", "naïve"], "not on a US keyboard: 'ï' (character 3)"),
        (["type", "eye"], "either TEXT or --stdin"),
        (["type", "eye", "x", "--hold", "soon"], "not a duration"),
        (["display", "eye", "--ask"], "--vnc-password"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_pressed(
    shared: Home, eye: str, echo: Callable[[], str], command: list[str], says: str
) -> None:
    assert says in shared.words(*command, check=2)
    assert echo() == ""


def test_every_key_of_this_qemu_has_its_name(qemu: Path) -> None:
    (codes,) = asked(qemu).enums_with("meta_l")
    assert codes - KEYS == {"unmapped"}


async def test_a_vm_without_a_keyboard_says_so(home: Path, qemu: Path) -> None:
    spec = qemuctl.Spec(name="m", machine="microvm", image="tiny", nics=())
    async with qemuctl.launch(spec) as vm:
        with pytest.raises(StateError, match="it has no keyboard"):
            await vm.keyboard.send("a")
