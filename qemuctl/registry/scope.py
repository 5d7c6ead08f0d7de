"""What a change is made to: the VM that runs, its spec, or both."""

from __future__ import annotations

from enum import StrEnum

from qemuctl.errors import StateError
from qemuctl.process import runs
from qemuctl.registry.hotplug_recovery import conclude_if_off
from qemuctl.registry.vms import find


class Scope(StrEnum):
    """What a change is made to: the VM that runs, its spec, or both."""

    LIVE = "live"
    CONFIG = "config"
    BOTH = "both"

    @property
    def live(self) -> bool:
        return self is not Scope.CONFIG

    @property
    def config(self) -> bool:
        return self is not Scope.LIVE


def scope_of(name: str, wanted: Scope | None = None) -> Scope:
    """What a change is made to by default: both when the VM is on, else its spec.

    Raises NotFound, and StateError for a live change of a VM that is off.
    """
    paths = find(name)
    is_on = runs(paths.lock)
    if not is_on:
        conclude_if_off(paths)  # what its last run has left undone
    if wanted is None:
        return Scope.BOTH if is_on else Scope.CONFIG
    if wanted.live and not is_on:
        raise StateError(
            f"change {name} live", "off", "the VM is off",
            hint=f"for its next start: --config; or first: qemuctl start {name}",
        )  # fmt: skip
    return wanted
