"""The MAC address of a card that was given none."""

from __future__ import annotations

import hashlib


def default_mac(name: str, index: int) -> str:
    """A card's address: the same at each start, another for each VM and card.

    52:54:00 is the range that QEMU itself uses.
    """
    digest = hashlib.sha256(f"{name}\0{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])
