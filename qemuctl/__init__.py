"""Virtual machines as ordinary processes, driven over QMP.

::

    import qemuctl

    async with qemuctl.launch(qemuctl.Spec(name="demo", image="tiny")) as vm:
        await vm.wait_ready()
        result = await vm.agent.run(["uname", "-a"])
        print(result.text)

`launch` gives a throwaway VM that dies with this process, whatever kills it;
`create` and `start` make one that stays. The names here are the library; the
command line is the same engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemuctl.errors import QemuctlError
    from qemuctl.guest.agent import Agent, Result
    from qemuctl.qmp import Event, Session
    from qemuctl.spec import Spec, load_spec, parse_spec
    from qemuctl.vm.definitions import create, remove
    from qemuctl.vm.launch import attach, launch, start
    from qemuctl.vm.states import State
    from qemuctl.vm.vm import Vm

__version__ = "0.1.0"

# Loaded when first asked for: `qemuctl ls` must not wait for what it does not use.
_HOMES = {
    "Agent": "qemuctl.guest.agent",
    "Event": "qemuctl.qmp",
    "QemuctlError": "qemuctl.errors",
    "Result": "qemuctl.guest.agent",
    "Session": "qemuctl.qmp",
    "Spec": "qemuctl.spec",
    "State": "qemuctl.vm.states",
    "Vm": "qemuctl.vm.vm",
    "attach": "qemuctl.vm.launch",
    "create": "qemuctl.vm.definitions",
    "launch": "qemuctl.vm.launch",
    "load_spec": "qemuctl.spec",
    "parse_spec": "qemuctl.spec",
    "remove": "qemuctl.vm.definitions",
    "start": "qemuctl.vm.launch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qemuctl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


__all__ = [
    "Agent",
    "Event",
    "QemuctlError",
    "Result",
    "Session",
    "Spec",
    "State",
    "Vm",
    "attach",
    "create",
    "launch",
    "load_spec",
    "parse_spec",
    "remove",
    "start",
]
