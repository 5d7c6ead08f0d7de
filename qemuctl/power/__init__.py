"""Pause, resume, reset, reboot, stop and kill: the facet ``vm.power``.

`stop` has the steps by which a VM is ended, one after the other. `resume_guard` holds
off a save while a guest is let run, `resume_event` lets it run and waits for the
event, `guest_clock` sets its clock afterwards; `by_agent` asks the guest itself.

It builds on `connection`. Start with `power`.
"""

from __future__ import annotations

from qemuctl.lazy import exports

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from qemuctl.connection.ssh import shut_down
    from qemuctl.power import by_agent as by_agent
    from qemuctl.power.guest_clock import set_clock
    from qemuctl.power.resume_guard import taken_back
    from qemuctl.power.stop import Stopping
    from qemuctl.registry.records.past_loads import loaded

__getattr__ = exports(
    __name__,
    {
        "Stopping": "qemuctl.power.stop",
        "by_agent": "qemuctl.power.by_agent",
        "loaded": "qemuctl.registry.records.past_loads",
        "set_clock": "qemuctl.power.guest_clock",
        "shut_down": "qemuctl.connection.ssh",
        "taken_back": "qemuctl.power.resume_guard",
    },
)

__all__ = [
    "Stopping",
    "loaded",
    "set_clock",
    "shut_down",
    "taken_back",
]
