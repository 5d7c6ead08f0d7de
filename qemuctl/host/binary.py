"""What one QEMU binary offers, as plain data.

Features are asked of the binary and never inferred from its version:
distributions leave devices out, and features are backported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from difflib import get_close_matches
from pathlib import Path

from qemuctl.errors import HostError
from qemuctl.structs import Struct


class MachineType(Struct):
    """One entry of ``query-machines``."""

    name: str
    alias: str | None = None
    cpu_max: int = 1
    deprecated: bool = False
    hotpluggable_cpus: bool = False


class Binary(Struct):
    """The features of the QEMU at ``path``.

    ``accels`` are words of ``-accel``; ``options`` are the option groups of
    ``query-command-line-options`` (``sandbox``, ``action``, ``run-with``);
    ``panic_actions`` are what ``-action panic=`` takes; ``transports`` are what a
    migration's channel may be (``file``), none before QEMU 8.2; ``memory_file`` are
    the properties of a memory-backend-file (``rom``); ``commands`` and ``events`` are
    QMP's.
    """

    path: Path
    version: str
    machines: Mapping[str, MachineType]
    devices: frozenset[str]
    objects: frozenset[str]
    accels: frozenset[str]
    chardevs: frozenset[str]
    netdevs: frozenset[str]
    blockdevs: frozenset[str]
    cpu_models: frozenset[str]
    options: frozenset[str]
    panic_actions: frozenset[str]
    transports: frozenset[str]
    memory_file: frozenset[str]
    commands: frozenset[str]
    events: frozenset[str]
    # Runs before an error that names a missing feature: what was learned may
    # be stale, because a package with a module (SPICE, qxl) can be installed
    # without touching the binary.
    on_missing: Callable[[], None] | None = field(
        default=None, compare=False, repr=False
    )

    def machine(self, name: str) -> MachineType:
        """The exact machine type behind ``name``: ``q35`` is an alias.

        Raises HostError when the binary has no such machine.
        """
        found = self.machines.get(name)
        if found is not None:
            return found
        for machine in self.machines.values():
            if machine.alias == name:
                return machine
        raise self._missing("machine", name, "machine", self.machines)

    def require_device(self, driver: str, why: str) -> None:
        """Raises HostError when ``-device driver`` is unknown; ``why`` needs it."""
        if driver not in self.devices:
            raise self._missing("device", driver, why, self.devices)

    def require_object(self, qom_type: str, why: str) -> None:
        """Raises HostError when ``-object qom_type`` is unknown."""
        if qom_type not in self.objects:
            raise self._missing("object", qom_type, why, self.objects)

    def require_netdev(self, type_: str, why: str) -> None:
        """Raises HostError when ``-netdev type_`` is unknown."""
        if type_ not in self.netdevs:
            raise self._missing("netdev", type_, why, self.netdevs)

    def require_blockdev(self, driver: str, why: str) -> None:
        """Raises HostError when ``-blockdev driver=`` is unknown."""
        if driver not in self.blockdevs:
            raise self._missing("block driver", driver, why, self.blockdevs)

    def require_chardev(self, backend: str, why: str) -> None:
        """Raises HostError when ``-chardev backend`` is unknown."""
        if backend not in self.chardevs:
            raise self._missing("chardev", backend, why, self.chardevs)

    def require_option(self, option: str, why: str, *, hint: str | None = None) -> None:
        """Raises HostError when the command line has no ``-option``."""
        if option not in self.options:
            raise self._missing("option", f"-{option}", why, (), hint=hint)

    def require_cpu_model(self, model: str, why: str) -> None:
        """Raises HostError when ``-cpu model`` is unknown; features may follow it."""
        name = model.split(",", 1)[0]
        if self.cpu_models and name not in self.cpu_models:
            raise self._missing("CPU model", name, why, self.cpu_models)

    def require_panic_action(self, action: str, why: str) -> None:
        """Raises HostError when ``-action panic=action`` is unknown."""
        if action not in self.panic_actions:
            raise self._missing("panic action", action, why, self.panic_actions)

    def _missing(
        self,
        kind: str,
        feature: str,
        why: str,
        known: Mapping[str, MachineType] | frozenset[str] | tuple[str, ...],
        *,
        hint: str | None = None,
    ) -> HostError:
        if self.on_missing is not None:
            self.on_missing()
        near = get_close_matches(feature, sorted(known), n=3)
        if hint is None and near:
            hint = f"it has: {', '.join(near)}"
        return HostError(
            f"{why} needs the {kind} {feature!r}, which this QEMU does not have: "
            f"{self.path} (version {self.version})",
            hint=hint,
        )
