"""Session, typed commands and events, recorder: the only package that imports qemu.qmp.

`session` talks to one monitor. Commands and events are types, by what they are for
(`commands`, `block`, `net`, …); a command's result has a type, too. `eventlog` reads
the file in which QEMU writes its events, `eventstream` follows it.

Start with `session`, then `commands`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemuctl.lazy import exports

if TYPE_CHECKING:
    from qemuctl.qmp import eventstream as eventstream
    from qemuctl.qmp.commands import Command
    from qemuctl.qmp.events import Event
    from qemuctl.qmp.recorder import Recorder
    from qemuctl.qmp.session import Session, Subscription

__getattr__ = exports(
    __name__,
    {
        "Command": "qemuctl.qmp.commands",
        "Event": "qemuctl.qmp.events",
        "Recorder": "qemuctl.qmp.recorder",
        "Session": "qemuctl.qmp.session",
        "Subscription": "qemuctl.qmp.session",
        "eventstream": "qemuctl.qmp.eventstream",
    },
)

__all__ = ["Command", "Event", "Recorder", "Session", "Subscription"]
