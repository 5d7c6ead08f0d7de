"""A guest's clock against the host's, from two readings."""

from __future__ import annotations

import pytest

from qemuctl.errors import TemplateError
from qemuctl.templates.guest_clock import Reading, check_rate


@pytest.mark.parametrize("uptime", [10.5, 11.0, 10.25])
def test_a_clock_that_keeps_step_is_fine_however_slow_the_answers_are(
    uptime: float,
) -> None:
    check_rate(Reading(0.0, 10.0, 0.3), Reading(0.6, uptime, 1.2))


@pytest.mark.parametrize(("uptime", "words"), [(15.5, "10.8 times"), (10.1, "0.2 ti")])
def test_a_clock_that_does_not_is_told_with_its_rate(uptime: float, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        check_rate(Reading(0.0, 10.0, 0.01), Reading(0.51, uptime, 0.52))
