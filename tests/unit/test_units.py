import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemuctl.units import (
    GIB,
    KIB,
    MIB,
    format_age,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        (1048576, MIB),
        ("1b", 1),
        ("1k", KIB),
        ("1KiB", KIB),
        ("512M", 512 * MIB),
        ("512 MB", 512 * MIB),
        ("4GiB", 4 * GIB),
        ("1.5G", 1536 * MIB),
        (" 60g ", 60 * GIB),
        ("2T", 2048 * GIB),
    ],
)
def test_a_size_is_a_power_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "12Q", "-1", "1e3", "G", "1,5G", "0x10", "1 2", "1.G", True, False]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_a_size_past_64_bits_is_refused():
    assert parse_size(2**63 - 1) == 2**63 - 1
    with pytest.raises(ValueError, match="too large"):
        parse_size("8E")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1000, "1000"),
        (KIB, "1K"),
        (512 * MIB, "512M"),
        (1536 * MIB, "1536M"),
        (GIB, "1G"),
        (2048 * GIB, "2T"),
        (GIB + 1, "1073741825"),
    ],
)
def test_a_size_is_written_as_short_as_is_exact(size, text):
    assert format_size(size) == text


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_a_written_size_reads_back_as_itself(size):
    assert parse_size(format_size(size)) == size


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert 0 <= parse_size(text) < 2**63


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), (30, 30), ("1.5s", 1.5), ("200ms", 0.2), ("2m", 120), ("1h", 3600)],
)
def test_a_duration_is_in_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1", "1d", "inf", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (192, "3m12s"),
        (3600, "1h"),
        (3660, "1h1m"),
        (190_800, "2d5h"),
    ],
)
def test_an_age_has_one_or_two_units(seconds, text):
    assert format_age(seconds) == text
