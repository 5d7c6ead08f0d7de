"""Work that goes on beside a block."""

from __future__ import annotations

import asyncio

import pytest

from qemuctl.thread import beside


async def test_it_gives_its_result_and_has_ended_with_the_block() -> None:
    async def forty_two() -> int:
        await asyncio.sleep(0)
        return 42

    async with beside(forty_two()) as work:
        assert await work == 42

    async with beside(asyncio.sleep(3600)) as endless:
        pass
    assert endless.cancelled()


async def test_its_error_is_told_where_it_is_awaited_and_not_else() -> None:
    async def failing() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        async with beside(failing()) as work:
            await work
    # Nobody has awaited it, and the block ends as it does.
    async with beside(failing()):
        await asyncio.sleep(0)
