"""When a pool may start another fork."""

from __future__ import annotations

import pytest

from qemuctl.pool.pace import Pace
from qemuctl.units import GIB, MIB


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pace(clock: Clock, *, free: int = 8 * GIB, cpus: int = 8) -> Pace:
    return Pace(cpus=cpus, reserve=GIB, clock=clock, available=lambda: free)


@pytest.mark.parametrize(
    ("cpus", "waiting", "expected"),
    [(1, 0, 1), (2, 0, 1), (8, 0, 4), (8, 6, 6), (8, 60, 8), (1, 60, 1)],
)
def test_filling_up_leaves_half_of_the_cpus_unless_somebody_waits(
    clock: Clock, cpus: int, waiting: int, expected: int
) -> None:
    assert pace(clock, cpus=cpus).at_once(waiting) == expected


def test_what_a_parked_fork_was_seen_to_take_counts_before_the_reserve(
    clock: Clock,
) -> None:
    tight = pace(clock, free=GIB + 60 * MIB)
    assert tight.pause() == 0
    tight.cost(50 * MIB)
    assert not tight.short_of_memory()
    tight.cost(70 * MIB)
    tight.cost(20 * MIB)
    assert tight.short_of_memory()
    assert tight.pause() > 0


def test_pauses_grow_with_failures_in_a_row_and_not_for_ever(clock: Clock) -> None:
    worn = pace(clock)
    pauses = []
    for _ in range(100):
        worn.failed()
        pauses.append(worn.pause())
    assert pauses[:3] == [0.25, 0.5, 1.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30
    clock.now += 30
    assert worn.pause() == 0
    worn.worked()
    worn.failed()
    assert worn.pause() == 0.25


def test_only_an_early_death_holds_up_the_next_start(clock: Clock) -> None:
    parked = pace(clock)
    parked.died(3600.0)
    assert parked.pause() == 0
    parked.died(0.1)
    assert parked.pause() == 0.25
    parked.died(0.1)
    assert parked.pause() == 0.5
    parked.died(3600.0)
    assert parked.pause() == 0


def test_the_reserve_is_some_of_this_hosts_memory() -> None:
    assert Pace().reserve >= 512 * MIB
