"""By what memory changes: balloon, virtio-mem or DIMMs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuctl.errors import SpecError
from qemuctl.hotplug.memory.choose import Choice, Dimm, MemoryNow, VirtioMem, choose
from qemuctl.units import MIB

DIMMS = (Dimm(id="dimm0", size_bytes=256 * MIB), Dimm(id="dimm1", size_bytes=128 * MIB))


def now(**fields: Any) -> MemoryNow:
    return MemoryNow(
        **{
            "start_bytes": 512 * MIB,
            "max_bytes": 2048 * MIB,
            "balloon_bytes": 512 * MIB,
            "balloon_requested_bytes": 512 * MIB,
            **fields,
        }
    )


def mem(size: int, requested: int | None = None) -> VirtioMem:
    wish = size if requested is None else requested
    return VirtioMem(
        id="vmem0", size_bytes=size * MIB, requested_bytes=wish * MIB,
        max_bytes=1536 * MIB, block_bytes=2 * MIB,
    )  # fmt: skip


def chosen(size: int, *, virtio_mem: bool = True, **fields: Any) -> Choice:
    return choose(now(**fields), size * MIB, virtio_mem=virtio_mem)


def test_less_than_at_start_is_for_the_balloon() -> None:
    choice = chosen(300)
    assert (choice.balloon_bytes, choice.virtio_mem_bytes) == (300 * MIB, 0)
    assert choice.why == "no more than the 512M that it started with"


def test_more_than_at_start_is_for_virtio_mem_which_takes_all_of_it() -> None:
    choice = chosen(1024, virtio_mem=True)
    assert (choice.balloon_bytes, choice.virtio_mem_bytes) == (512 * MIB, 512 * MIB)


def test_without_virtio_mem_it_is_for_a_dimm() -> None:
    choice = choose(now(), 1024 * MIB, virtio_mem=False, why_not="because")
    assert (choice.new_dimm_bytes, choice.balloon_bytes) == (512 * MIB, 1024 * MIB)
    assert choice.why == "because"


def test_where_there_are_dimms_another_one_comes() -> None:
    choice = chosen(1024, dimms=DIMMS)
    assert (choice.new_dimm_bytes, choice.virtio_mem_bytes) == (128 * MIB, 0)


def test_a_shrink_takes_back_what_was_added_first() -> None:
    assert choose(now(virtio_mem=mem(256)), 300 * MIB, virtio_mem=True) == Choice(
        why="no more than the 512M that it started with", balloon_bytes=300 * MIB
    )
    assert chosen(300, dimms=DIMMS).out == ("dimm0", "dimm1")
    assert chosen(512, dimms=DIMMS).out == ("dimm0", "dimm1")


def test_a_part_of_a_dimm_is_for_the_balloon() -> None:
    choice = chosen(800, dimms=DIMMS)
    assert (choice.out, choice.balloon_bytes) == ((), 800 * MIB)
    choice = chosen(700, dimms=DIMMS)
    assert (choice.out, choice.balloon_bytes) == (("dimm1",), 700 * MIB)


@pytest.mark.parametrize(
    ("size", "key", "hint"),
    [
        (2049, "memory.max", "--config"),
        (0, "memory.size", "512M"),
        (0.5, "memory.size", "512M"),
        (600.5, "memory.size", "512M"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_key(
    size: float, key: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        choose(now(), int(size * MIB), virtio_mem=True)
    assert caught.value.key == key
    assert hint in (caught.value.hint or "")


def test_without_room_the_error_says_how_to_get_some() -> None:
    with pytest.raises(SpecError, match=r"started without memory\.max") as caught:
        chosen(513, max_bytes=512 * MIB)
    assert "set memory.max" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("fields", "size", "hint"),
    [
        ({}, 513, "512M or 514M"),
        ({"virtio_mem": mem(0)}, 515, "514M or 516M"),
        ({"dimms": DIMMS}, 1000, "896M or 1G"),
    ],
)
def test_a_size_between_two_steps_says_which_there_are(
    fields: dict[str, Any], size: int, hint: str
) -> None:
    with pytest.raises(SpecError, match="comes in steps") as caught:
        choose(now(**fields), size * MIB, virtio_mem=True)
    assert hint in (caught.value.hint or "")


@given(
    st.integers(1, 2048),
    st.lists(st.integers(1, 4), max_size=3),
    st.booleans(),
)
def test_every_choice_comes_to_what_was_wanted(
    size: int, dimms: list[int], virtio_mem: bool
) -> None:
    there = tuple(
        Dimm(id=f"dimm{n}", size_bytes=size * 128 * MIB) for n, size in enumerate(dimms)
    )
    before = now(dimms=there)
    try:
        choice = choose(before, size * MIB, virtio_mem=virtio_mem)
    except SpecError:
        return
    out = sum(dimm.size_bytes for dimm in there if dimm.id in choice.out)
    fixed = before.fixed_bytes - out + choice.new_dimm_bytes
    assert 0 < choice.balloon_bytes <= fixed
    assert choice.balloon_bytes + choice.virtio_mem_bytes == size * MIB
    assert not (choice.virtio_mem_bytes and choice.new_dimm_bytes)


def test_what_is_on_its_way_is_not_there_yet() -> None:
    memory = now(
        virtio_mem=mem(100, 200), balloon_bytes=512 * MIB,
        balloon_requested_bytes=400 * MIB,
    )  # fmt: skip
    assert memory.actual_bytes == 612 * MIB
    assert memory.requested_bytes == 600 * MIB
    assert now(balloon_bytes=None, balloon_requested_bytes=None).actual_bytes == (
        512 * MIB
    )
