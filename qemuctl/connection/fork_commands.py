"""What must not be asked of the machine of a fork."""

from __future__ import annotations

from qemuctl.errors import SpecError


def check_command(name: str, arguments: object) -> None:
    """Raises SpecError for what must not be done to a fork's machine: a balloon's
    memory is given back by cutting it out of the template's file (before QEMU 9)."""
    if "virtio-balloon" in str(arguments):
        raise SpecError(
            f"a fork takes no balloon: what one guest gives back would be cut out of "
            f"the memory of all: {name}"
        )
