"""Tests of one command each, through the pytest plugin."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench_table import Row

TESTS = 200
CODE = f"""
import pytest

@pytest.mark.parametrize("number", range({TESTS}))
def test_one_command(vm, number):
    assert vm.run("true").ok
"""


def plugin() -> Iterator[Row]:
    """A fresh guest for each test, with one worker and with two."""
    with tempfile.TemporaryDirectory(prefix="bench-pytest-") as name:
        folder = Path(name)
        (folder / "test_bench.py").write_text(CODE)
        for workers in (1, 2):
            words = f"{workers} worker" + "s" * (workers > 1)
            rate = TESTS / seconds(folder, workers)
            yield Row(f"{TESTS} tests, a fresh guest each, {words}", "tests/s", [rate])


def seconds(folder: Path, workers: int) -> float:
    """Of the whole run, pytest's own start included."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    spread = ["-n", str(workers)] if workers > 1 else []
    started = time.perf_counter()
    subprocess.run([*argv, *spread], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started
