"""The keys of a keyboard, and how text is typed on a US one: data and its reading.

Names are those of QEMU's `QKeyCode`; what else people call a key is an alias.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from qemuctl.errors import UsageError

_NAMES_OF_ALL = """
    shift shift_r alt alt_r ctrl ctrl_r menu meta_l meta_r compose
    1 2 3 4 5 6 7 8 9 0 a b c d e f g h i j k l m n o p q r s t u v w x y z
    minus equal bracket_left bracket_right semicolon apostrophe grave_accent
    backslash comma dot slash less
    esc tab ret backspace spc caps_lock num_lock scroll_lock
    f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12
    f13 f14 f15 f16 f17 f18 f19 f20 f21 f22 f23 f24
    insert delete home end pgup pgdn left right up down print sysrq pause
    kp_0 kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9 kp_add kp_subtract
    kp_multiply kp_divide kp_enter kp_decimal kp_comma kp_equals asterisk
    stop again props undo front copy open paste find cut lf help
    ro hiragana henkan yen muhenkan katakanahiragana lang1 lang2
    power sleep wake audionext audioprev audiostop audioplay audiomute
    volumeup volumedown mediaselect mail calculator computer
    ac_home ac_back ac_forward ac_refresh ac_bookmarks
"""
KEYS = frozenset(_NAMES_OF_ALL.split())
ALIASES = {
    "control": "ctrl",
    "ctrl_l": "ctrl",
    "alt_l": "alt",
    "altgr": "alt_r",
    "shift_l": "shift",
    "super": "meta_l",
    "win": "meta_l",
    "windows": "meta_l",
    "meta": "meta_l",
    "cmd": "meta_l",
    "del": "delete",
    "ins": "insert",
    "escape": "esc",
    "enter": "ret",
    "return": "ret",
    "space": "spc",
    "bksp": "backspace",
    "pageup": "pgup",
    "page_up": "pgup",
    "pagedown": "pgdn",
    "page_down": "pgdn",
    "printscreen": "print",
    "prtsc": "print",
    "break": "pause",
    "capslock": "caps_lock",
    "numlock": "num_lock",
    "scrolllock": "scroll_lock",
}

_UNSHIFTED = "`-=[]\\;',./ \n\t"
_NAMES = (
    "grave_accent minus equal bracket_left bracket_right backslash semicolon "
    "apostrophe comma dot slash spc ret tab"
)
# Each with Shift gives the character below it.
_LOWER = "`1234567890-=[]\\;',./abcdefghijklmnopqrstuvwxyz"
_UPPER = '~!@#$%^&*()_+{}|:"<>?ABCDEFGHIJKLMNOPQRSTUVWXYZ'
_PLAIN = {c: c for c in "1234567890abcdefghijklmnopqrstuvwxyz"} | dict(
    zip(_UNSHIFTED, _NAMES.split(), strict=True)
)
_SHIFTED = {u: _PLAIN[p] for p, u in zip(_LOWER, _UPPER, strict=True)}
US_LAYOUT = {c: (key,) for c, key in _PLAIN.items()} | {
    c: ("shift", key) for c, key in _SHIFTED.items()
}
"""The keys that make each character, in the order in which they are pressed."""

# Between two characters, so that a key may be a `-` or `+` itself.
_BETWEEN = re.compile(r"(?<=.)[-+](?=.)")


def parse_keys(text: str) -> tuple[str, ...]:
    """The keys of ``ctrl-alt-delete``, to be held together.

    Raises UsageError for what is no key, with the nearest name.
    """
    if not text:
        raise UsageError("no key is named", hint="such as: ret, f1, ctrl-alt-delete")
    return tuple(_key(word) for word in _BETWEEN.split(text))


def _key(word: str) -> str:
    name = word.lower()
    name = ALIASES.get(name, name)
    if name in KEYS:
        return name
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _SHIFTED:
        hint = f"it is on the key {_SHIFTED[name]}: shift-{_SHIFTED[name]}"
    else:
        close = get_close_matches(name, [*KEYS, *ALIASES], 3)
        names = "such as: a, f1, ret, esc, left, ctrl-alt-delete"
        hint = f"did you mean {' or '.join(close)}?" if close else names
    raise UsageError(f"not a key: {word!r}", hint=hint)


def strokes(text: str) -> list[tuple[str, ...]]:
    """The keys for each character of a text, on a US keyboard.

    Raises UsageError for a character that it has not.
    """
    text = text.replace("\r\n", "\n")
    for at, character in enumerate(text):
        if character not in US_LAYOUT:
            raise UsageError(
                f"not on a US keyboard: {character!r} (character {at + 1})",
                hint="only ASCII can be typed; give the rest to the guest with "
                "qemuctl cp or exec",
            )
    return [US_LAYOUT[character] for character in text]
