"""What the tests of migration rely on sees what it is there to see."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.guest.conftest import Home
from tests.guest.ticking import CLOCK, begin, listening, told

PAUSE = 0.7


@pytest.fixture(scope="module")
def counting(shared: Home) -> str:
    begin(shared, shared.boot("clock", *CLOCK))
    return "clock"


def test_a_guest_at_work_loses_nothing_and_a_pause_is_heard(
    shared: Home, counting: str, until: Callable[..., object]
) -> None:
    with listening(shared) as heard:
        until(lambda: heard.last, 60)
        before = told(shared, counting).check()
        until(lambda: heard.last > before, 60)
        # On a busy host there have been pauses before.
        length = heard.silence + PAUSE
        shared.run("pause", counting)
        time.sleep(length)
        paused = heard.last
        shared.run("resume", counting)
        until(lambda: heard.last > paused, 60)
        assert heard.silence > length
        after = told(shared, counting)
    # The guest's own clock stood still with it.
    assert before < paused <= after.check()


def test_one_wrong_byte_in_ram_or_on_disk_is_seen(shared: Home, counting: str) -> None:
    flip = """for file in /ram/once1-* /disk/once2-* /disk/ticks; do
    byte=$(xxd -p -l 1 "$file")
    printf "\\x$(printf %02x $((0x$byte ^ 1)))" | dd of="$file" bs=1 conv=notrunc
    done 2>/dev/null"""
    shared.run("exec", counting, "--", "sh", "-c", flip)
    wrong = told(shared, counting)
    assert wrong.missing == [1]
    assert [text.split("-")[0] for text in wrong.damaged[1:]] == [
        "/ram/once1",
        "/disk/once2",
    ]
    with pytest.raises(AssertionError, match="lost"):
        wrong.check()
    shared.run("exec", counting, "--", "sh", "-c", flip)
    told(shared, counting).check()
