"""QMP commands of processors that are plugged in and out."""

from __future__ import annotations

from typing import Any

from qemuctl.qmp.commands import Command
from qemuctl.structs import Struct


class HotpluggableCpu(Struct):
    """query-hotpluggable-cpus: one socket for a processor, with the driver and the
    properties that device_add wants; ``qom_path`` where there is one already."""

    type: str
    vcpus_count: int
    props: dict[str, Any]
    qom_path: str | None = None


class QueryHotpluggableCpus(Command[list[HotpluggableCpu]]):
    NAME = "query-hotpluggable-cpus"
    REPLY = HotpluggableCpu
