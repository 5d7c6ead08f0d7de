"""SIGKILL of who makes a template, at each step: the next one makes it, once."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

from qemuctl import paths
from tests.conftest import survivors
from tests.guest.conftest import Home
from tests.guest.templates import cached, own_cache
from tests.steps import Cut

GONE_WITHIN = 20.0
MAKE = ("run", "tiny", "--memory", "160M", "--", "echo", "works")
# What changes something before the guest boots, and once it is ready.
STEPS = (
    "make .*.lock", "start sh undertaker.sh", "mkdir template-*", "make vm.yaml",
    "rename started.yaml", "make launch.sh", "start sh shepherd.sh",
    "rename process.json", "qmp cont", "qmp migrate",
    "rename template.json",
)  # fmt: skip


def test_a_killed_maker_leaves_nothing_that_the_next_one_does_not_clear(
    here: Home, tmp_path: Path, until: Callable[..., object]
) -> None:
    own_cache(here.path)
    kept = here.path / "cache/templates"
    halves = 0
    for step in STEPS:
        cut = Cut(str(tmp_path / "steps"), step)
        done = here.run(*MAKE, cut=cut, check=None)
        assert done.returncode == -signal.SIGKILL, (step, done.stderr, cut.names())
        until(lambda: not survivors(here.path), GONE_WITHIN)
        assert list((here.path / "state/vms").glob("*")) == []
        assert not list(paths.run_home().glob("*/*"))
        assert not list(kept.glob("*/template.json")), step
        half = [path for path in kept.glob("*/*") if path.is_dir()]
        assert len(half) <= 1  # what another one left is cleared before
        halves += len(half)
    assert halves >= 3
    assert here.text(*MAKE) == "works\n"
    (key,) = cached(here)
    (making,) = [path.name for path in (kept / key).iterdir() if path.is_dir()]
    assert json.loads((kept / key / "template.json").read_text())["making"] == making
    # Killed now, a taker leaves the template to the next one.
    cut = Cut(str(tmp_path / "steps"), "qmp migrate-incoming")
    here.run(*MAKE, cut=cut, check=-signal.SIGKILL)
    until(lambda: not survivors(here.path), GONE_WITHIN)
    assert here.text(*MAKE) == "works\n"
    assert [path.name for path in (kept / key).iterdir() if path.is_dir()] == [making]
