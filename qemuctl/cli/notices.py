"""What is worth saying about a VM that has just started."""

from __future__ import annotations

import contextlib

from qemuctl.cli.output import note
from qemuctl.paths import cache_home


def say_accelerator(reason: str, requested: str) -> None:
    """Says once why ``auto`` chose the accelerator that it chose, and again only when
    that has changed; `info` and `doctor` always tell."""
    if requested != "auto":
        return
    said = cache_home() / "accelerator-said"
    with contextlib.suppress(OSError):
        if said.exists() and said.read_text() == reason:
            return
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(reason)
    note(f"note: {reason}")
