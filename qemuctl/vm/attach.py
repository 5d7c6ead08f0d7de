"""Finding a VM that runs already; nothing here loads what starts one."""

from __future__ import annotations

from qemuctl.connection.monitors import state_of
from qemuctl.errors import StateError
from qemuctl.process import runs
from qemuctl.registry.records.process_record import Record
from qemuctl.registry.states import Action, require
from qemuctl.registry.vms import find
from qemuctl.vm.vm import Vm


async def attach(name: str, action: Action = Action.QMP) -> Vm:
    """The VM of this name, which must have a process.

    Raises NotFound, and StateError when it is off or still starting.
    """
    paths = find(name)
    # While it is busy, the record is that of an earlier run.
    is_on = runs(paths.lock)
    record = Record.read(paths.record) if is_on else None
    if record is None:
        require(action, await state_of(paths), name)
        raise StateError(f"reach {name}", "starting", "it is still starting")
    return Vm(paths, record)
