"""What surrounds every command that waits."""

from __future__ import annotations

import asyncio
import gc

import pytest

from qemuctl.cli.running import run_async


async def _call_off_what_nobody_waits_for() -> None:
    ending = asyncio.ensure_future(asyncio.Event().wait())
    gathered = asyncio.gather(ending)
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait({ending})
    await asyncio.sleep(0)
    del gathered


def test_what_was_called_off_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(_call_off_what_nobody_waits_for())
    gc.collect()
    assert "never retrieved" in caplog.text  # as Python has it
    caplog.clear()
    run_async(_call_off_what_nobody_waits_for())
    gc.collect()
    assert caplog.text == ""
