"""One VM that runs: its monitor, its agent, deadlines, and its end.

The facets of a VM (`hotplug`, `power`, `screen`, `snapshots`, `stats`) take a
`connection.Connection`, and know of no other way to QEMU. `monitors` finds a monitor
that answers and asks for the state, `agent_port` tells whether a guest's agent is
there, `readiness` why it will not come, `ssh` as whom and with which key to log in.

It builds on `qmp`, `guest` and `registry`. Start with `connection`.
"""

from __future__ import annotations

from qemuctl.lazy import exports

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from qemuctl.connection.fork_commands import check_command
    from qemuctl.connection.readiness import unless_hopeless
    from qemuctl.search import search

__getattr__ = exports(
    __name__,
    {
        "check_command": "qemuctl.connection.fork_commands",
        "search": "qemuctl.search",
        "unless_hopeless": "qemuctl.connection.readiness",
    },
)

__all__ = [
    "check_command",
    "search",
    "unless_hopeless",
]
