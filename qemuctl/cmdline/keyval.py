"""Options whose value is ``head,key=value,…``: the one place that escapes commas.

``-machine``, ``-chardev``, ``-vnc`` and a few more do not take JSON. In their
syntax a comma ends a value, whatever a path may hold, and is written twice.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar

from qemuctl.cmdline.qapi import to_qapi
from qemuctl.structs import Struct


def escape(value: object) -> str:
    """One value in comma syntax: ``a,b`` becomes ``a,,b``, True becomes ``on``."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


class KeyvalOption(Struct):
    """An option in comma syntax; ``HEAD`` names the field without a key."""

    OPTION: ClassVar[str]
    HEAD: ClassVar[str | None] = None

    def arguments(self) -> list[str]:
        """The option and its value."""
        members: dict[str, Any] = to_qapi(self)
        parts = []
        if self.HEAD is not None:
            parts.append(escape(members.pop(self.HEAD)))
        parts += [f"{key}={escape(value)}" for key, value in members.items()]
        return [self.OPTION, ",".join(parts)]


class Plain(Struct):
    """An option whose value, if any, QEMU takes as it stands."""

    option: str
    value: str | None = field(default=None)

    def arguments(self) -> list[str]:
        """The option and its value."""
        return [self.option] if self.value is None else [self.option, self.value]
