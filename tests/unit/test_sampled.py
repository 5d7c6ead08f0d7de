"""Rates since a sample that somebody else took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sample import AFTER, disk

from qemuctl.paths import VmPaths
from qemuctl.process import Identity
from qemuctl.process.usage import started_at
from qemuctl.stats.last_samples import keep, rates_since
from qemuctl.stats.sample import Sample
from tests.hostile import fuzzed, trees

QEMU = Identity(pid=7, start_ticks=100, boot_id="b")
START = started_at(QEMU)


def sample(seconds: float) -> Sample:
    """One of so many seconds after the start, with a second of CPU time each."""
    clock = START + seconds
    return replace(
        AFTER, clock=clock, cpu_seconds=seconds, vcpus=(), nics=None,
        disks=(disk(clock, read_bytes=int(1000 * seconds)),),
    )  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    return VmPaths(tmp_path, tmp_path)


def seconds(paths: VmPaths, at: float, qemu: Identity = QEMU) -> float:
    found = rates_since(paths, qemu, sample(at))
    assert found is not None
    assert found.cpu_share == pytest.approx(1)
    assert found.disks is not None
    assert found.disks[0].read_bytes_per_second == pytest.approx(1000, abs=1)
    return found.seconds


def test_the_first_has_rates_since_the_start(paths: VmPaths) -> None:
    assert seconds(paths, 5) == 5
    found = rates_since(paths, QEMU, replace(AFTER, clock=START + 5))
    assert found is not None
    assert found.nics is None  # a guest may have counted before


def test_the_next_has_those_since_a_second_ago_or_more(paths: VmPaths) -> None:
    keep(paths, QEMU, sample(5))
    assert seconds(paths, 8) == 3
    # One that comes right after another has nothing to compare with but the start.
    assert seconds(paths, 5.5) == 5.5
    keep(paths, QEMU, sample(5.5))
    assert seconds(paths, 8) == 3
    keep(paths, QEMU, sample(8))
    assert seconds(paths, 8.01) == pytest.approx(3.01)
    assert seconds(paths, 9) == 1


def test_one_of_another_process_is_none(paths: VmPaths) -> None:
    keep(paths, QEMU, sample(5))
    for other in (replace(QEMU, pid=8), replace(QEMU, boot_id="c")):
        assert seconds(paths, 8, other) == 8


def test_one_of_the_future_does_not_last(paths: VmPaths) -> None:
    keep(paths, QEMU, sample(50))
    assert seconds(paths, 8) == 8
    keep(paths, QEMU, sample(8))
    assert seconds(paths, 10) == 2


def test_a_silent_qemu_leaves_the_sample_before_it(paths: VmPaths) -> None:
    keep(paths, QEMU, sample(5))
    keep(paths, QEMU, replace(sample(7), disks=None))
    assert seconds(paths, 8) == 3


def test_nothing_is_kept_in_a_folder_that_has_gone(tmp_path: Path) -> None:
    gone = VmPaths(tmp_path, tmp_path / "gone")
    keep(gone, QEMU, sample(5))
    assert seconds(gone, 8) == 8


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, "\0" * 60, '{"qemu": {}, "samples": []}', "\udcff"],
)
def test_a_damaged_file_is_as_none(paths: VmPaths, text: str) -> None:
    paths.sampled.write_text(text, errors="surrogateescape")
    assert seconds(paths, 8) == 8
    keep(paths, QEMU, sample(8))
    assert seconds(paths, 10) == 2


@fuzzed(200)
@given(part=trees(st.sampled_from([*sample(1).__dict__, "id", "index"])))
def test_no_content_of_it_stops_anybody(
    tmp_path_factory: pytest.TempPathFactory, part: object
) -> None:
    folder = tmp_path_factory.mktemp("run")
    paths = VmPaths(folder, folder)
    keep(paths, QEMU, sample(5))
    found = json.loads(paths.sampled.read_text())
    for whole in ({**found, "samples": part}, {**found, "samples": [part]}, part):
        paths.sampled.write_text(json.dumps(whole))
        assert rates_since(paths, QEMU, sample(8)) is not None
    for name in found["samples"][0]:
        odd = [found["samples"][0] | {name: part}]
        paths.sampled.write_text(json.dumps({**found, "samples": odd}))
        rates_since(paths, QEMU, sample(8))
