"""What `Pool.take` gives: to be awaited, or entered as a block."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from qemuctl.boot.throwaway import Attached
from qemuctl.vm.vm import Vm


class Taking:
    """Awaited, it is the fork, which its taker ends; as a block, its VM, which ends
    with the block."""

    def __init__(self, take: Callable[[], Coroutine[Any, Any, Attached]]) -> None:
        self._take = take
        self._attached: Attached | None = None

    def __await__(self) -> Generator[Any, None, Attached]:
        return self._take().__await__()

    async def __aenter__(self) -> Vm:
        self._attached = await self._take()
        return self._attached.vm

    async def __aexit__(self, *_exc: object) -> None:
        assert self._attached is not None
        await self._attached.end()
