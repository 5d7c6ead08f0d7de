"""What the user writes: frozen models, and loading with file and line in each error.

::

    YAML text ─► document ─► load ─► model.Spec
    --disk …  ─► shorthand ──┘  └─► problems: one SpecError for all that is wrong

`text` goes the other way, to the YAML of a `Spec`; `schema` has the JSON schema and a
commented example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.spec.base import Model
    from qemuctl.spec.cloud import CloudInit
    from qemuctl.spec.computer import Boot, Cpu, Display, Memory, Root, Topology
    from qemuctl.spec.disk import Disk
    from qemuctl.spec.load import (
        base_of,
        load_spec,
        parse_spec,
        resolve_paths,
        validate,
    )
    from qemuctl.spec.model import Spec
    from qemuctl.spec.naming import changed, renamed, validate_name
    from qemuctl.spec.network import Forward, Nic
    from qemuctl.spec.problems import spec_error
    from qemuctl.spec.scalars import check_name
    from qemuctl.spec.schema import example, json_schema
    from qemuctl.spec.shorthand import (
        parse_cpus,
        parse_disk,
        parse_display,
        parse_memory,
        parse_nic,
    )
    from qemuctl.spec.text import dump

__getattr__ = exports(
    __name__,
    {
        "Boot": "qemuctl.spec.computer",
        "CloudInit": "qemuctl.spec.cloud",
        "Cpu": "qemuctl.spec.computer",
        "Disk": "qemuctl.spec.disk",
        "Display": "qemuctl.spec.computer",
        "Forward": "qemuctl.spec.network",
        "Memory": "qemuctl.spec.computer",
        "Model": "qemuctl.spec.base",
        "Nic": "qemuctl.spec.network",
        "Root": "qemuctl.spec.computer",
        "Spec": "qemuctl.spec.model",
        "Topology": "qemuctl.spec.computer",
        "base_of": "qemuctl.spec.load",
        "changed": "qemuctl.spec.naming",
        "check_name": "qemuctl.spec.scalars",
        "dump": "qemuctl.spec.text",
        "example": "qemuctl.spec.schema",
        "json_schema": "qemuctl.spec.schema",
        "load_spec": "qemuctl.spec.load",
        "parse_cpus": "qemuctl.spec.shorthand",
        "parse_disk": "qemuctl.spec.shorthand",
        "parse_display": "qemuctl.spec.shorthand",
        "parse_memory": "qemuctl.spec.shorthand",
        "parse_nic": "qemuctl.spec.shorthand",
        "parse_spec": "qemuctl.spec.load",
        "renamed": "qemuctl.spec.naming",
        "resolve_paths": "qemuctl.spec.load",
        "spec_error": "qemuctl.spec.problems",
        "validate": "qemuctl.spec.load",
        "validate_name": "qemuctl.spec.naming",
    },
)

__all__ = [
    "Boot",
    "CloudInit",
    "Cpu",
    "Disk",
    "Display",
    "Forward",
    "Memory",
    "Model",
    "Nic",
    "Root",
    "Spec",
    "Topology",
    "base_of",
    "changed",
    "check_name",
    "dump",
    "example",
    "json_schema",
    "load_spec",
    "parse_cpus",
    "parse_disk",
    "parse_display",
    "parse_memory",
    "parse_nic",
    "parse_spec",
    "renamed",
    "resolve_paths",
    "spec_error",
    "validate",
    "validate_name",
]
