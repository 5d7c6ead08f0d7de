"""SIGKILL of who makes a template, at any moment: the next one makes it, once."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from qemuctl import paths
from tests.conftest import survivors
from tests.guest.conftest import Home, qemu  # noqa: F401 (a fixture)
from tests.guest.templates import cached, own_cache

pytestmark = pytest.mark.timeout(300)

ROUNDS = 20
# The tiny guest has booted and is frozen after some seconds.
LATEST = 5.0
GONE_WITHIN = 2.0
MAKE = ("run", "tiny", "--memory", "160M", "--", "echo", "works")


def test_a_killed_maker_leaves_nothing_that_the_next_one_does_not_clear(
    home: Path,
    qemu: Path,  # noqa: F811
) -> None:
    here = own_cache(home)
    kept = home / "cache/templates"
    moments = random.Random(7)
    met = {"nothing yet": 0, "half": 0, "whole": 0}
    for _ in range(ROUNDS):
        maker = here.popen(*MAKE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.2, LATEST))
        maker.kill()
        maker.wait()
        deadline = time.monotonic() + GONE_WITHIN
        while survivors(home):
            assert time.monotonic() < deadline, survivors(home)
            time.sleep(0.01)
        assert list((home / "state/vms").glob("*")) == []
        assert not list(paths.run_home().glob("*/*"))
        whole = list(kept.glob("*/template.json"))
        half = [path for path in kept.glob("*/*") if path.is_dir()]
        met["whole" if whole else "half" if half else "nothing yet"] += 1
        assert len(half) <= 1  # what another one left is cleared before
        for description in whole:  # the next round begins anew
            shutil.rmtree(description.parent)
    assert met["half"] >= 3, met
    assert here.text(*MAKE) == "works\n"
    (key,) = cached(here)
    (making,) = [path.name for path in (kept / key).iterdir() if path.is_dir()]
    assert json.loads((kept / key / "template.json").read_text())["making"] == making
    assert here.text(*MAKE) == "works\n"
    assert [path.name for path in (kept / key).iterdir() if path.is_dir()] == [making]
