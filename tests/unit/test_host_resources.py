"""What is left of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemuctl.errors import HostError
from qemuctl.host.resources import available_memory, cpu_count, free_space


def test_available_memory_is_in_bytes(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2048 kB\nMemAvailable:    1024 kB\n")
    assert available_memory(meminfo) == 1024 * 1024


@pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: x kB\n"])
def test_unreadable_memory_is_an_error(tmp_path: Path, text: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(text)
    with pytest.raises(HostError, match="cannot read free memory"):
        available_memory(meminfo)


def test_there_is_a_processor() -> None:
    assert cpu_count() >= 1


def test_a_folder_to_be_made_is_measured_on_its_parent(tmp_path: Path) -> None:
    assert free_space(tmp_path / "a" / "b") > 0
