"""What the tests of hostile input share."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

F = TypeVar("F", bound=Callable[..., Any])

# What `scripts/fuzz` takes; an example that hangs is one, a slow host is none.
settings.register_profile("fuzz", max_examples=2000, deadline=30_000)

# Words that stand for what a program does not expect, or only nearly.
ODD = (
    "", "-", "--", "0", "-1", "1e999", "nan", "9" * 30, "9" * 5000, "x" * 5000,
    "\x1b[2J", "a\nb", "é", "\udcff", "\u202e", "..", "../x", ".", "~nobody", "%s",
    "{}", "[", "[]", "@", ":", ",", "=", "a=b,c", "null", "true", "web", "web:",
    "web:/x", "10G", "1.5", "tcp::1", "file:///x", "ssh://-o", "http://[", "/dev/null",
)  # fmt: skip
NUMBERS = (
    st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 2**64, 10**400])
)


def fuzzed(examples: int) -> Callable[[F], F]:
    """A property that `scripts/fuzz` tries for long, and the suite so many times."""

    def mark(test: F) -> F:
        # What is set at a test goes before the profile.
        is_long = (
            settings.default.max_examples > settings.get_profile("default").max_examples
        )
        chosen = settings(
            parent=settings.default if is_long else settings(deadline=None),
            max_examples=settings.default.max_examples if is_long else examples,
            suppress_health_check=list(HealthCheck),
        )
        return pytest.mark.fuzz(chosen(test))  # type: ignore[no-any-return]

    return mark


def trees(keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Data as JSON has it, with keys of which some mean something."""
    leaves = (
        st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(ODD)
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5)
        ),
        max_leaves=10,
    )


@contextlib.contextmanager
def memory(most: int) -> Iterator[None]:
    """Fails when Python takes more than ``most`` bytes at a time in the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most, f"{peak} bytes at a time"
