"""What a guest says of a device: whether it sees it, and by which name."""

from __future__ import annotations

from typing import Literal

from qemuctl.structs import Struct


class Sight(Struct, kw_only=False):
    """What the guest says of one device; ``device`` is its name there."""

    answer: Literal["seen", "not seen", "no agent"]
    device: str | None = None

    def __str__(self) -> str:
        return f"seen as {self.device}" if self.device else self.answer
