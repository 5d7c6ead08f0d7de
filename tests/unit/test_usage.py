"""What proc(5) tells of a process."""

from __future__ import annotations

from qemuctl.process.usage import parse_swapped

STATUS = (
    b"Name:\tVmSwap: 7 kB\nVmRSS:\t    2048 kB\nVmSwap:\t    1536 kB\nThreads:\t3\n"
)


def test_what_is_swapped_out_is_told_in_bytes() -> None:
    assert parse_swapped(STATUS) == 1536 * 1024


def test_a_kernel_thread_or_one_without_swap_has_none() -> None:
    assert parse_swapped(b"Name:\tkthreadd\nThreads:\t1\n") == 0
