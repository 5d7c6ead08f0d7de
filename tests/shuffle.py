"""`--shuffle [SEED]`: the files in another order, and the tests of each file too.

No test may need what another one has left behind. The header tells the seed, which
gives the same order again.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shuffle",
        nargs="?",
        type=int,
        const=random.randrange(1_000_000),
        metavar="SEED",
        help="run files, and the tests in each, in another order",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("--shuffle")
    return None if seed is None else f"order: --shuffle {seed}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker of pytest-xdist the seed: it reads the arguments anew."""
    node.workerinput["shuffle"] = node.config.getoption("--shuffle")


# Last, for pytest itself brings tests together that share a fixture.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    told: dict[str, Any] = getattr(config, "workerinput", {})
    seed = told.get("shuffle", config.getoption("--shuffle"))
    if seed is not None:
        items[:] = shuffled(items, random.Random(seed))


def shuffled(items: list[pytest.Item], chance: random.Random) -> list[pytest.Item]:
    """The same tests; those of one file stay together."""
    files: defaultdict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.path].append(item)
    groups = list(files.values())
    chance.shuffle(groups)
    for group in groups:
        chance.shuffle(group)
    return [item for group in groups for item in group]
