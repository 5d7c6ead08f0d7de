"""What a VM is to have, beside what the host has."""

from __future__ import annotations

from qemuctl.errors import HostError
from qemuctl.host.resources import cpu_count, memory_and_swap, total_memory
from qemuctl.spec import Spec
from qemuctl.units import format_rounded


def check_memory(spec: Spec) -> None:
    """Raises HostError for a guest with more memory than the host has with its swap:
    QEMU does not start, or is killed when the guest uses it."""
    there = memory_and_swap()
    if spec.memory.size > there:
        raise HostError(
            f"the guest is to have {format_rounded(spec.memory.size)} of memory, which "
            f"is more than this host has: {format_rounded(there)}, swap included",
            hint="give it less: --memory, or the key memory of its spec",
        )


def doubts(spec: Spec) -> list[str]:
    """What is odd, though possible: notes for its user."""
    found = []
    if spec.cpu.count > cpu_count():
        found.append(
            f"{spec.cpu.count} processors on a host that has {cpu_count()}: the guest "
            "is slower than with fewer"
        )
    if spec.memory.size > total_memory():
        found.append(
            f"{format_rounded(spec.memory.size)} of memory where "
            f"{format_rounded(total_memory())} may be used: QEMU is killed when the "
            "guest uses more"
        )
    return found
