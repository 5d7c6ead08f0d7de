"""What the user writes: frozen models, and loading with file and line in each error.

::

    YAML text ─► document ─► load ─► model.Spec
    --disk …  ─► shorthand ──┘  └─► problems: one SpecError for all that is wrong

`schema` goes the other way: the JSON schema, a commented example, and the
YAML of a `Spec`.
"""

from qemuctl.spec.base import Model
from qemuctl.spec.cloud import CloudInit
from qemuctl.spec.load import base_of, load_spec, parse_spec, resolve_paths, validate
from qemuctl.spec.model import (
    Boot,
    Cpu,
    Disk,
    Display,
    Forward,
    Memory,
    Nic,
    Root,
    Spec,
    Topology,
)
from qemuctl.spec.naming import changed, renamed, validate_name
from qemuctl.spec.scalars import check_name
from qemuctl.spec.schema import dump, example, json_schema
from qemuctl.spec.shorthand import (
    parse_cpus,
    parse_disk,
    parse_display,
    parse_memory,
    parse_nic,
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
    "validate",
    "validate_name",
]
