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
    from qemuctl.errors import QemuctlError
    from qemuctl.guest.agent import Agent, Result
    from qemuctl.pool.pool import Pool
    from qemuctl.qmp import Event, Session
    from qemuctl.spec import Spec, load_spec, parse_spec
    from qemuctl.vm.attach import attach
    from qemuctl.vm.definitions import create, remove
    from qemuctl.vm.fork import fork
    from qemuctl.vm.fresh import fresh
    from qemuctl.vm.launch import launch, start
    from qemuctl.vm.states import State
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
        "State": "qemuctl.vm.states",
        "Vm": "qemuctl.vm.vm",
        "attach": "qemuctl.vm.attach",
        "create": "qemuctl.vm.definitions",
        "fork": "qemuctl.vm.fork",
        "fresh": "qemuctl.vm.fresh",
        "launch": "qemuctl.vm.launch",
        "load_spec": "qemuctl.spec",
        "parse_spec": "qemuctl.spec",
        "remove": "qemuctl.vm.definitions",
        "start": "qemuctl.vm.launch",
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
