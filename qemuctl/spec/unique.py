"""Ids of devices, and what there may be only once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Annotated

from qemuctl.typed.marks import Check

_ID = re.compile(r"[a-z][a-z0-9-]{0,19}")
# Names of devices that a VM has anyway, and of what belongs to a disk or card.
_RESERVED = re.compile(
    r"(port|net|scsi|ahci|usb|cdrom|cpu|dimm|vmem|rng)[0-9]*"
    r"|vga|vserial|agent|copy|balloon|tablet|pvpanic|cidata|.*-(file|throttle|mem)"
)


def _check_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(
            f"not an id: {value!r} (a letter, then up to 19 of a-z, 0-9 and -)"
        )
    if _RESERVED.fullmatch(value):
        raise ValueError(f"the id is taken by a part of every VM: {value}")
    return value


Id = Annotated[str, Check(_check_id)]
"""What a device is called for as long as it is there."""


def check_unique(what: str, values: Iterable[Hashable]) -> None:
    """Raises ValueError, with ``what`` and the value, for one that comes twice."""
    for value, times in Counter(values).items():
        if value is not None and times > 1:
            raise ValueError(f"{what}: {value}")
