"""How a VM's last run ended, from what outlived it.

The shepherd wrote the exit status, QEMU wrote its events, and both did so
without any of us; put together they tell who ended it.
"""

from __future__ import annotations

import signal

from qemuctl.paths import VmPaths
from qemuctl.process import read_exit
from qemuctl.qmp import eventlog
from qemuctl.qmp.events import Event, GuestPanicked, Shutdown
from qemuctl.structs import Struct
from qemuctl.tail import tail

# ShutdownCause of QEMU's schema (run-state.json).
_CAUSES = {
    "host-qmp-quit": "stopped",
    "host-signal": "terminated",
    "host-ui": "stopped at its window",
    "host-error": "stopped by an error of QEMU",
    "guest-shutdown": "stopped by the guest",
    "guest-reset": "ended by a reboot of the guest",
    "guest-panic": "guest panicked",
    "host-qmp-system-reset": "ended by a reset",
    "subsystem-reset": "ended by a reset",
    "snapshot-load": "ended by a snapshot",
}
# Most real-time signals have none.
_SIGNALS = {number.value: number.name for number in signal.Signals}


class Outcome(Struct, kw_only=False):
    """How QEMU ended.

    ``status`` is its exit status, negative for a signal, None when nobody
    saw it; ``reason`` QEMU's ShutdownCause if it gave one; ``at`` the time in
    seconds since the epoch; ``text`` the whole in a few words.
    """

    status: int | None
    reason: str | None
    panicked: bool
    at: float | None
    text: str

    @property
    def clean(self) -> bool:
        """Whether it ended as it should."""
        return self.status == 0 and not self.panicked


def outcome(paths: VmPaths) -> Outcome | None:
    """How the last run ended; None when there was none."""
    exited = read_exit(paths.exit)
    if exited.at is None and not paths.record.exists():
        return None
    events = list(eventlog.past(paths.events))
    reason = _reason(events)
    panicked = any(event.name == GuestPanicked.NAME for event in events)
    text = _describe(exited.status, reason, panicked, paths)
    return Outcome(exited.status, reason, panicked, exited.at, text)


def _reason(events: list[Event]) -> str | None:
    for event in reversed(events):
        if event.name == Shutdown.NAME:
            return Shutdown.of(event).reason
    return None


def _describe(
    status: int | None, reason: str | None, panicked: bool, paths: VmPaths
) -> str:
    if panicked:
        return "guest panicked"
    if status is None:
        return "ended, nobody saw how"
    if status < 0:
        name = _SIGNALS.get(-status)
        return f"killed by signal {-status}" + (f" ({name})" if name else "")
    if status == 0:
        return _CAUSES.get(reason or "", "ended")
    words = tail(paths.qemu_log, 1).strip()
    return f"failed with status {status}" + (f": {words}" if words else "")
