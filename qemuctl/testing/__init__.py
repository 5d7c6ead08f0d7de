"""What tests do with a guest: the verbs, as an async face and a sync one.

`Guest` has the verbs, `SyncGuest` the same without ``await``, for tests that
know no event loop; the loop then lives in a `LoopThread`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.guest.agent import Result
    from qemuctl.testing.command import CommandFailed
    from qemuctl.testing.guest import Guest
    from qemuctl.testing.loop import LoopThread
    from qemuctl.testing.sync import SyncGuest

__getattr__ = exports(
    __name__,
    {
        "CommandFailed": "qemuctl.testing.command",
        "Guest": "qemuctl.testing.guest",
        "LoopThread": "qemuctl.testing.loop",
        "Result": "qemuctl.guest.agent",
        "SyncGuest": "qemuctl.testing.sync",
    },
)

__all__ = ["CommandFailed", "Guest", "LoopThread", "Result", "SyncGuest"]
