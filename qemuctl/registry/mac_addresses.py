"""The MAC addresses of a VM's cards: by default they follow from its name.

A guest knows its cards by them. A VM that gets another name keeps its addresses, which
are written into its spec then; another VM that takes the old name gets others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from qemuctl.cmdline.mac import default_mac
from qemuctl.spec import Spec


def with_macs(spec: Spec, name: str) -> Spec:
    """The spec with the addresses written that its cards have under this name."""
    nics = [
        nic if nic.mac or nic.type == "none"
        else nic.model_copy(update={"mac": default_mac(name, index)})
        for index, nic in enumerate(spec.nics)
    ]  # fmt: skip
    return spec.model_copy(update={"nics": tuple(nics)})


def without_macs(spec: Spec) -> Spec:
    """The spec of a copy, whose addresses are to follow from its own name."""
    nics = [nic.model_copy(update={"mac": None}) for nic in spec.nics]
    return spec.model_copy(update={"nics": tuple(nics)})


def unlike(spec: Spec, others: Iterable[Path]) -> Spec:
    """The spec, with addresses of its own where another spec, by its file, has those
    that follow from its name."""
    given = {nic.mac for nic in spec.nics}
    implied = {nic.mac for nic in with_macs(spec, spec.name).nics} - given - {None}
    taken = set()
    for path in others:
        with contextlib.suppress(OSError):
            text = path.read_text(errors="replace").lower()
            taken |= {mac for mac in implied if str(mac) in text}
    if not taken:
        return spec
    return with_macs(spec, f"{spec.name} {os.urandom(8).hex()}")
