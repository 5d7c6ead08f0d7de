"""A socket and a client for tests of the agent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from qemuctl.guest.agent import Agent


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path, whose length does not leave room for a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="q"))
    yield folder / "agent"
    shutil.rmtree(folder)


@pytest.fixture
async def agent(path: Path) -> AsyncIterator[Agent]:
    made = Agent(path)
    yield made
    made.release()
