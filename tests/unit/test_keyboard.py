"""The names of keys, and the keys of a text."""

from __future__ import annotations

import contextlib
import string
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import CommandError, StateError, UsageError
from qemuctl.qmp.plug import Property, QomList
from qemuctl.qmp.screen import SendKey
from qemuctl.registry.states import State
from qemuctl.screen.keyboard import Keyboard
from qemuctl.screen.keys import ALIASES, KEYS, US_LAYOUT, parse_keys, strokes


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a", "a"),
        ("ctrl-alt-delete", "ctrl alt delete"),
        ("Ctrl+Alt+Del", "ctrl alt delete"),
        ("super-l", "meta_l l"),
        ("alt-f4", "alt f4"),
        ("enter", "ret"),
        ("page_up", "pgup"),
        ("kp_1", "kp_1"),
        ("ctrl-[", "ctrl bracket_left"),
        ("-", "minus"),
        ("ctrl--", "ctrl minus"),
        ("ctrl+-", "ctrl minus"),
        (" ", "spc"),
    ],
)
def test_a_combination_is_read(text: str, keys: str) -> None:
    assert parse_keys(text) == tuple(keys.split())


@pytest.mark.parametrize(
    ("text", "word", "hint"),
    [
        ("ctrl-alt-delte", "'delte'", "did you mean delete"),
        ("cntrl-c", "'cntrl'", "ctrl"),
        ("ctrl-?", "'?'", "shift-slash"),
        ("+", "'+'", "shift-equal"),
        ("ctrl+", "'ctrl+'", "did you mean ctrl"),
        ("é", "'é'", "such as"),
        ("a--b", "''", "such as"),
        ("0x1c", "'0x1c'", ""),
    ],
)
def test_what_is_no_key_is_named_with_what_would_be(
    text: str, word: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_keys(text)
    assert str(caught.value) == f"not a key: {word}"
    assert hint in (caught.value.hint or "")


def test_nothing_is_no_key() -> None:
    with pytest.raises(UsageError, match="no key is named"):
        parse_keys("")


@given(st.text())
def test_any_text_gives_keys_or_a_reason(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert set(parse_keys(text)) <= KEYS


def test_aliases_lead_to_keys_and_hide_none() -> None:
    assert set(ALIASES.values()) <= KEYS
    assert not set(ALIASES) & KEYS


def test_the_layout_is_all_of_ascii_that_prints() -> None:
    assert set(US_LAYOUT) == {*map(chr, range(32, 127)), "\n", "\t"}
    assert {key for keys in US_LAYOUT.values() for key in keys} <= KEYS
    assert len(set(US_LAYOUT.values())) == len(US_LAYOUT)


@pytest.mark.parametrize(
    ("character", "keys"),
    [
        *((c, c) for c in string.ascii_lowercase + string.digits),
        *((c, f"shift {c.lower()}") for c in string.ascii_uppercase),
        ("!", "shift 1"),
        ("@", "shift 2"),
        ("^", "shift 6"),
        ("(", "shift 9"),
        (")", "shift 0"),
        ("_", "shift minus"),
        ("+", "shift equal"),
        ("~", "shift grave_accent"),
        ('"', "shift apostrophe"),
        ("|", "shift backslash"),
        ("\\", "backslash"),
        ("?", "shift slash"),
        ("<", "shift comma"),
        (":", "shift semicolon"),
        ("\n", "ret"),
        ("\t", "tab"),
    ],
)
def test_a_character_has_its_keys(character: str, keys: str) -> None:
    assert strokes(character) == [tuple(keys.split())]


def test_a_line_of_dos_ends_with_one_enter() -> None:
    assert strokes("a\r\nb") == [("a",), ("ret",), ("b",)]


@pytest.mark.parametrize("character", ["é", "€", "\0", "\x1b", "\r", "\udcff", "\x7f"])
def test_what_is_not_on_the_keyboard_is_named_with_its_place(character: str) -> None:
    with pytest.raises(UsageError) as caught:
        strokes(f"ab{character}")
    assert f"{character!r} (character 3)" in str(caught.value)


class Vm:
    """As much of a VM as a keyboard needs."""

    name = "web"

    def __init__(self, *states: State, parts: str = "i8042") -> None:
        self.states, self.parts, self.sent = list(states), parts, []

    async def state(self) -> State:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def execute(self, command: Any, **options: Any) -> Any:
        if isinstance(command, QomList):
            if "anon" in command.path:
                raise CommandError(command.NAME, "DeviceNotFound", "no such path")
            return [Property(name="x", type=f"child<{self.parts}>")]
        assert isinstance(command, SendKey)
        self.sent.append(
            SimpleNamespace(keys=[k["data"] for k in command.keys], **options)
        )
        return {}


@pytest.mark.parametrize("part", ["i8042", "usb-kbd", "virtio-keyboard-pci"])
async def test_keys_go_out_in_order(part: str) -> None:
    vm: Any = Vm(State.RUNNING, parts=part)
    await Keyboard(vm).send("ctrl-c", "b", hold_ms=1)
    assert [(s.keys, s.private) for s in vm.sent] == [
        (["ctrl", "c"], False),
        (["b"], False),
    ]


async def test_a_text_is_private() -> None:
    vm: Any = Vm(State.RUNNING)
    await Keyboard(vm).type("Hi", hold_ms=1)
    assert [(s.keys, s.private) for s in vm.sent] == [
        (["shift", "h"], True),
        (["i"], True),
    ]


async def test_one_wrong_key_and_none_is_pressed() -> None:
    vm: Any = Vm(State.RUNNING)
    with pytest.raises(UsageError):
        await Keyboard(vm).send("a", "nonsense")
    with pytest.raises(UsageError):
        await Keyboard(vm).type("aé")
    with pytest.raises(UsageError, match="not a time"):
        await Keyboard(vm).type("a", hold_ms=0)
    assert vm.sent == []


async def test_without_a_keyboard_nothing_is_sent() -> None:
    vm: Any = Vm(State.RUNNING, parts="isa-serial")
    with pytest.raises(StateError, match="it has no keyboard"):
        await Keyboard(vm).send("a")
    assert vm.sent == []


async def test_typing_ends_where_the_vm_is_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qemuctl.screen.keyboard._LOOK_EVERY", 0.0)
    vm: Any = Vm(State.RUNNING, State.RUNNING, State.PAUSED)
    with pytest.raises(StateError, match="the VM is paused") as caught:
        await Keyboard(vm).type("abc", hold_ms=1)
    assert len(vm.sent) == 1
    assert caught.value.hint == "the first 1 of 3 keys were sent; go on with the rest"
