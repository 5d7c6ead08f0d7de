"""What is left of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from qemuctl.errors import HostError
from qemuctl.host import Accel, Host, inspection
from qemuctl.host.discovery import from_json
from qemuctl.host.resources import available_memory, cpu_count, free_space, tsc_khz

RECORDED = Path(__file__).parent.parent / "golden/qemu-7.2.json"


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


@pytest.mark.parametrize(
    ("told", "rate"),
    [
        ("cpu MHz\t\t: 800.000\nbogomips\t: 5192.25\n", 2_596_000),
        ("BogoMIPS\t: 50.00\n", None),  # of a processor that has no such counter
        ("bogomips\t: 0.00\n", None),
        ("bogomips\t: fast\n", None),
        ("", None),
    ],
)
def test_the_time_stamp_counters_rate_does_not_follow_the_processors(
    told: str, rate: int | None, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{told}\n")
    assert tsc_khz(cpuinfo) == rate
    assert tsc_khz(tmp_path / "none") is None


@pytest.mark.parametrize(("kind", "told"), [("tcg", True), ("kvm", False)])
def test_only_an_emulated_guest_is_told_a_rate(
    kind: Literal["tcg", "kvm"], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "tsc_khz", lambda: 2_596_000)
    binary = from_json(Path("/qemu"), RECORDED.read_bytes())
    host = Host(binary=binary, accel=Accel(kind=kind, reason="", cpu_model=None))
    assert host.guest_tsc_khz == (2_596_000 if told else None)
