"""Random changes of one guest, over and over."""

from __future__ import annotations

import pytest

import qemuctl
from tests.guest.conftest import Home
from tests.guest.test_random_changes import change
from tests.soak.conftest import Soak


async def test_changes(
    shared: Home, web: str, soak: Soak, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMUCTL_HOME", str(shared.path))
    async with await qemuctl.attach(web) as vm:
        for _ in soak.rounds():
            await change(vm, soak.chance, changes=50)
