"""Drives that only a VM's `extra_args` know of, such as UEFI variables."""

from __future__ import annotations

from qemuctl.errors import StateError
from qemuctl.spec import Spec
from qemuctl.spec.arguments import written_drives


def check_drives(spec: Spec, action: str, state: str) -> None:
    """Raises StateError for a VM that writes to a drive of its `extra_args`: what is to
    be done with all of its disks would leave that one out, whether it is on or off."""
    for drive in written_drives(spec.extra_args):
        raise StateError(
            f"{action} {spec.name}", state,
            f"its extra_args bring a drive that it writes to, and of which qemuctl "
            f"knows no more: {drive}",
            hint="name it in disks instead, or say readonly=on if it is only read: "
            f"qemuctl edit {spec.name}",
        )  # fmt: skip
