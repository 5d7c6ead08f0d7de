"""The spec that a running VM was started with, whatever its file says by now."""

from __future__ import annotations

from qemuctl.errors import SpecError
from qemuctl.paths import VmPaths
from qemuctl.spec import Spec, parse_spec


def started_spec(paths: VmPaths) -> Spec:
    """The spec as it was at the start. Raises SpecError for a file that is broken,
    OSError for one that cannot be read."""
    try:
        return parse_spec(paths.started.read_text(), name=paths.name)
    except (FileNotFoundError, SpecError):
        # Renamed since, or started by a version that wrote no such file.
        return parse_spec(paths.spec.read_text(), name=paths.name)
