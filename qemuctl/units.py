"""Sizes and durations: what people write, and the numbers behind it.

Sizes use qemu-img's notation: a suffix is a power of 1024, with or without
``iB`` (``60G`` and ``60GiB`` are the same), and no suffix means bytes.
"""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtpe])(?:i?b)?|b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LARGEST = 2**63 - 1


def parse_size(text: str | int) -> int:
    """Bytes of ``"512M"``, ``"1.5GiB"`` or ``1048576``.

    Raises ValueError with a message for the user.
    """
    match = _SIZE.fullmatch(str(text).strip()) if not isinstance(text, bool) else None
    if match is None:
        raise ValueError(
            f"not a size: {text!r} (write a number with K, M, G or T, such as 512M)"
        )
    number, suffix = match.groups()
    scale = int(KIB ** _POWERS[(suffix or "").lower()])
    size = int(number) * scale if "." not in number else round(float(number) * scale)
    if size > _LARGEST:
        raise ValueError(f"size too large: {text}")
    return size


def format_size(size: int) -> str:
    """The shortest exact notation: ``"512M"``, ``"1536M"``, ``"1000"``."""
    for suffix, power in (("T", 4), ("G", 3), ("M", 2), ("K", 1)):
        scale = KIB**power
        if size >= scale and size % scale == 0:
            return f"{size // scale}{suffix}"
    return str(size)


def format_rounded(size: int) -> str:
    """A size for people, in one or two digits more than its unit: ``"1.5G"``."""
    value = float(size)
    for suffix in ("", "K", "M", "G", "T", "P"):
        if value < KIB or suffix == "P":
            break
        value /= KIB
    return f"{value:.1f}".removesuffix(".0") + suffix


def parse_duration(text: str | float) -> float:
    """Seconds of ``"30"``, ``"1.5s"``, ``"200ms"``, ``"2m"`` or ``30``.

    Raises ValueError with a message for the user.
    """
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"not a duration: {text!r} (write 30, 30s, 200ms or 2m)")
    number, suffix = match.groups()
    return float(number) * _SECONDS[suffix or "s"]


def format_age(seconds: float) -> str:
    """A duration for people, in one or two units: ``"4s"``, ``"3m12s"``, ``"2d5h"``."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left}s"
    parts: list[str] = []
    for suffix, scale in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, scale)
        if amount or parts:
            parts.append(f"{amount}{suffix}")
    return "".join(part for part in parts[:2] if not part.startswith("0"))
