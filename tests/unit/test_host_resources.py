"""What is left of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from qemuctl.errors import HostError
from qemuctl.host import Accel, Host, inspection
from qemuctl.host.discovery import from_json
from qemuctl.host.resources import (
    available_memory,
    cpu_count,
    free_space,
    memory_limit,
    total_memory,
    tsc_khz,
)
from qemuctl.units import MIB

RECORDED = Path(__file__).parent.parent / "golden/qemu-7.2.json"


def test_available_memory_is_in_bytes(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2048 kB\nMemAvailable:    1024 kB\n")
    assert available_memory(tmp_path) == 1024 * 1024


@pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: x kB\n"])
def test_unreadable_memory_is_an_error(tmp_path: Path, text: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(text)
    with pytest.raises(HostError, match="cannot read free memory"):
        available_memory(tmp_path)


GROUPS = {
    # As with systemd, as in a container with its own namespace, and as in one without.
    "v2": ("0::/user/vm\n", "/", "cgroup2", "/user/vm", "memory.max", "memory.current",
           "inactive_file"),
    "v2 in a namespace": ("0::/\n", "/../..", "cgroup2", "", "memory.high",
                          "memory.current", "inactive_file"),
    "v1": ("9:name=systemd:/\n4:cpu,memory:/a/b\n", "/", "cgroup", "/a/b",
           "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "v1 in docker": ("4:memory:/docker/7/vm\n", "/docker/7", "cgroup", "/vm",
                     "memory.limit_in_bytes", "memory.usage_in_bytes",
                     "total_inactive_file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", GROUPS)
def test_a_control_groups_limit_counts(tmp_path: Path, kind: str) -> None:
    group, root, fs, below, limit, used, cache = GROUPS[kind]
    (tmp_path / "meminfo").write_text(
        "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\n"
    )
    top, own = tmp_path / "cg", tmp_path / f"cg{below}"
    own.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(group)
    (tmp_path / "self/mountinfo").write_text(
        "23 1 0:9 / / rw - ext4 /dev/vda rw\n"
        f"31 23 0:28 {root} {top} rw,relatime shared:9 - {fs} cgroup rw,memory\n"
    )
    assert memory_limit(tmp_path) is None
    # Version 1 has a number where there is no limit.
    (top / limit).write_text("9223372036854771712\n" if fs == "cgroup" else "max\n")
    assert memory_limit(tmp_path) is None
    for folder, allowed in ((top, 900), (own, 700)):
        (folder / limit).write_text(f"{allowed * MIB}\n")
        (folder / used).write_text(f"{300 * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{cache} {100 * MIB}\n")
    assert available_memory(tmp_path) == 500 * MIB
    assert memory_limit(tmp_path) == total_memory(tmp_path) == 700 * MIB
    (top / limit).write_text(f"{250 * MIB}\n")
    assert available_memory(tmp_path) == 50 * MIB


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
