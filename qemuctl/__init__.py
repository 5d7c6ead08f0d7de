"""Virtual machines as ordinary processes, driven over QMP.

::

    import qemuctl

    async with qemuctl.launch(qemuctl.Spec(name="demo", image="tiny")) as vm:
        await vm.wait_ready()
        result = await vm.agent.run(["uname", "-a"])
        print(result.text)

`launch` gives a throwaway VM that dies with this process, whatever kills it;
`fresh` one whose guest is ready, a fork of a frozen one where that can be; `Pool`
keeps such forks at hand. `create` and `start` make one that stays. The names here
are the library; the command line is the same engine.
"""

from __future__ import annotations

from qemuctl.lazy import exports

TYPE_CHECKING = False  # typing takes milliseconds to import
if TYPE_CHECKING:
    from qemuctl.boot.start import launch, start
    from qemuctl.errors import QemuctlError
    from qemuctl.guest.agent import Agent, Result
    from qemuctl.pool.pool import Pool
    from qemuctl.qmp import Event, Session
    from qemuctl.registry.removal import remove
    from qemuctl.registry.states import State
    from qemuctl.registry.vms import create
    from qemuctl.spec import Spec, load_spec, parse_spec
    from qemuctl.templates.fork import fork
    from qemuctl.templates.fresh_vm import fresh
    from qemuctl.vm.attach import attach
    from qemuctl.vm.vm import Vm

__version__ = "0.1.0"

__getattr__ = exports(
    __name__,
    {
        "Agent": "qemuctl.guest.agent",
        "Event": "qemuctl.qmp",
        "Pool": "qemuctl.pool.pool",
        "QemuctlError": "qemuctl.errors",
        "Result": "qemuctl.guest.agent",
        "Session": "qemuctl.qmp",
        "Spec": "qemuctl.spec",
        "State": "qemuctl.registry.states",
        "Vm": "qemuctl.vm.vm",
        "attach": "qemuctl.vm.attach",
        "create": "qemuctl.registry.vms",
        "fork": "qemuctl.templates.fork",
        "fresh": "qemuctl.templates.fresh_vm",
        "launch": "qemuctl.boot.start",
        "load_spec": "qemuctl.spec",
        "parse_spec": "qemuctl.spec",
        "remove": "qemuctl.registry.removal",
        "start": "qemuctl.boot.start",
    },
)

__all__ = [
    "Agent",
    "Event",
    "Pool",
    "QemuctlError",
    "Result",
    "Session",
    "Spec",
    "State",
    "Vm",
    "attach",
    "create",
    "fork",
    "fresh",
    "launch",
    "load_spec",
    "parse_spec",
    "remove",
    "start",
]
