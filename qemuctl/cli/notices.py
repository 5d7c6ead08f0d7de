"""What is worth saying about a VM that has just started."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qemuctl.cli.output import note
from qemuctl.paths import cache_home

if TYPE_CHECKING:
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm


def say_accelerator(reason: str, requested: str) -> None:
    """Says once why ``auto`` chose the accelerator that it chose, and again only when
    that has changed; `info` and `doctor` always tell. That a guest may hang by the one
    that was asked for is said each time."""
    if requested != "auto":
        from qemuctl.host.accel import doubt

        why = doubt() if requested == "kvm" else None
        if why is not None:
            note(f"note: {why}")
        return
    said = cache_home() / "accelerator-said"
    with contextlib.suppress(OSError):
        if said.exists() and said.read_text() == reason:
            return
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(reason)
    note(f"note: {reason}")


def say_doubts(spec: Spec) -> None:
    """Says what of a VM is odd on this host."""
    from qemuctl.registry.host_memory import doubts

    for doubt in doubts(spec):
        note(f"note: {doubt}")


async def gone_on(vm: Vm) -> str:
    """The words for a guest that goes on from a saved state, and whether it knows the
    time."""
    state = await vm.state()
    forwards = f", {', '.join(vm.record.forwards)}" if vm.record.forwards else ""
    words = f"{vm.name} goes on from where it was saved: {state}{forwards}"
    problem = await vm.clock if vm.clock is not None else None
    if problem is not None:
        words += f"\nits clock is that of then: {problem}"
    return words
