"""QMP commands that ask for numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from qemuctl.qmp.commands import Command, from_wire
from qemuctl.structs import Struct


class BlockCounters(Struct):
    """What a device has read and written since it was plugged in."""

    rd_bytes: int
    wr_bytes: int
    rd_operations: int
    wr_operations: int
    flush_operations: int


class BlockStats(Struct):
    """query-blockstats: one device; ``qdev`` is its id or its path in QOM."""

    stats: BlockCounters
    qdev: str | None = None
    node_name: str | None = None


class QueryBlockstats(Command[list[BlockStats]]):
    NAME = "query-blockstats"
    REPLY = BlockStats

    def result(self, value: Any) -> list[BlockStats]:
        found = super().result(value)
        return [
            replace(one, stats=from_wire(BlockCounters, cast(Any, one.stats)))
            for one in found
        ]


class MemorySize(Struct):
    """query-memory-size-summary: bytes at the start, and plugged in since."""

    base_memory: int
    plugged_memory: int | None = None


class QueryMemorySizeSummary(Command[MemorySize]):
    NAME = "query-memory-size-summary"
    REPLY = MemorySize
