"""The keyboard of a running VM: combinations of keys, and text."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence

from qemuctl.connection.connection import Connection
from qemuctl.errors import CommandError, StateError, UsageError
from qemuctl.qmp.plug import QomList
from qemuctl.qmp.screen import SendKey
from qemuctl.registry.states import Action, State, require
from qemuctl.screen.keys import parse_keys, strokes

# QEMU's own. Twice as fast works with Linux and with the BIOS too, but a slow
# guest misses keys: a PS/2 keyboard keeps five of them for it, no more.
HOLD_MS = 10
LONGEST_HOLD_MS = 60_000
# Each of QEMU's timers is late by a bit, and its queue must not grow: of more
# than a thousand steps it drops what comes.
_LATE_MS = 2
_LOOK_EVERY = 1.0
_PLACES = ("/machine/unattached", "/machine/peripheral", "/machine/peripheral-anon")
_KEYBOARD = re.compile(r"child<.*(i8042|kbd|keyboard).*>")


class Keyboard:
    """``vm.keyboard``: keys for the guest, in order."""

    def __init__(self, vm: Connection) -> None:
        self._vm = vm

    async def send(self, *combinations: str, hold_ms: int = HOLD_MS) -> None:
        """Presses each combination of keys, such as ``ctrl-alt-delete`` (send-key).

        Keys are pressed and released one after the other, ``hold_ms`` milliseconds
        apart; the last is released when this returns. Raises UsageError for what
        is no key, StateError when the guest does not run or has no keyboard.
        """
        await self._press([parse_keys(text) for text in combinations], hold_ms)

    async def type(self, text: str, *, hold_ms: int = HOLD_MS) -> None:
        """Types a text on a US keyboard, in order; a newline is Enter (send-key).

        The text is not written to the log of commands. Raises as `send` does, and
        UsageError for characters that are not on the keyboard, before any is typed.
        """
        await self._press(strokes(text), hold_ms, private=True)

    async def _press(
        self, all_keys: Sequence[tuple[str, ...]], hold_ms: int, private: bool = False
    ) -> None:
        if not 1 <= hold_ms <= LONGEST_HOLD_MS:
            raise UsageError(
                f"not a time to hold a key: {hold_ms} ms (1 to {LONGEST_HOLD_MS})"
            )
        await self._require_keyboard()
        looked = time.monotonic()
        for done, keys in enumerate(all_keys):
            if time.monotonic() - looked > _LOOK_EVERY:
                await self._require_running(done, len(all_keys))
                looked = time.monotonic()
            codes = [{"type": "qcode", "data": key} for key in keys]
            command = SendKey(keys=codes, hold_time=hold_ms)
            await self._vm.execute(command, private=private)
            # No event tells that QEMU has pressed and released them all.
            await asyncio.sleep(2 * len(keys) * (hold_ms + _LATE_MS) / 1000)

    async def _require_keyboard(self) -> None:
        """Without one QEMU takes the keys and drops them."""
        require(Action.KEYS, await self._vm.state(), self._vm.name)
        for place in _PLACES:
            try:
                parts = await self._vm.execute(QomList(path=place))
            except CommandError:  # no device was ever put there
                continue
            if any(_KEYBOARD.fullmatch(part.type) for part in parts):
                return
        raise StateError(
            f"{Action.KEYS} {self._vm.name}", State.RUNNING, "it has no keyboard",
            hint="a microvm has none; machine: q35 and pc do",
        )  # fmt: skip

    async def _require_running(self, done: int, total: int) -> None:
        """Raises StateError once the guest is paused: the keys of a paused one
        pile up, and those that do not fit are lost."""
        try:
            require(Action.KEYS, await self._vm.state(), self._vm.name)
        except StateError as error:
            error.hint = (
                f"the first {done} of {total} keys were sent; go on with the rest"
            )
            raise
