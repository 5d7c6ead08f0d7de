"""Random tests that go on for a while: `scripts/soak [--minutes N] [--seed S]`."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.guest.conftest import here, qemu, shared, web

__all__ = ["here", "qemu", "shared", "web"]

_SEED = pytest.StashKey[int]()
_MET = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=10, help="of all tests together")
    parser.addoption("--seed", type=int, help="repeats an earlier run")


def pytest_configure(config: pytest.Config) -> None:
    seed = config.getoption("--seed")
    config.stash[_SEED] = random.randrange(10**6) if seed is None else seed
    config.stash[_MET] = {}
    # The tests end by themselves, but for a hang.
    config.option.timeout = config.getoption("--minutes") * 60 + 600


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.stash[_SEED]}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    terminalreporter.section("soak")
    for name, met in config.stash[_MET].items():
        words = ", ".join(f"{what} {times}" for what, times in sorted(met.items()))
        terminalreporter.line(f"{name}: {words}")
    seed = config.stash[_SEED]
    terminalreporter.line(f"to repeat a test: scripts/soak --seed {seed} -k NAME")


@dataclass
class Soak:
    """A test's share of the time, its chances, and what it has met."""

    chance: random.Random
    seconds: float
    met: Counter[str] = field(default_factory=Counter)

    def rounds(self) -> Iterator[int]:
        """Numbers from 0, at least one, until the share is used up."""
        end = time.monotonic() + self.seconds
        while self.met["rounds"] == 0 or time.monotonic() < end:
            yield self.met["rounds"]
            self.met["rounds"] += 1


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> Soak:
    config, name = request.config, request.node.name
    share = config.getoption("--minutes") * 60 / len(request.session.items)
    # By the name: a test that runs alone has the same chances.
    soak = Soak(random.Random(f"{config.stash[_SEED]} {name}"), share)
    config.stash[_MET][name] = soak.met
    return soak
