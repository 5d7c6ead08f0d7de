"""The end of a migration on the source's side: the VM has left, or it stays."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from qemuctl.errors import CommandError, QemuctlError, StateError
from qemuctl.migration import storage
from qemuctl.migration.tls import drop_credentials
from qemuctl.paths import VmPaths
from qemuctl.qmp.commands import Cont, QueryStatus, Quit
from qemuctl.qmp.migration import cancel
from qemuctl.vm import definitions
from qemuctl.vm.leaving import Leaving, end
from qemuctl.vm.moved import note_moved

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

_QUIT_PATIENCE = 10.0


async def leave(vm: Vm, leaving: Leaving) -> None:
    """Ends the copy here: the guest runs elsewhere. With ``keep`` the VM stays, off,
    and says where it went. What cannot be removed is left to `recover`."""
    if vm.record.qemu.alive():
        with contextlib.suppress(QemuctlError, TimeoutError):
            async with asyncio.timeout(_QUIT_PATIENCE):
                await vm.execute(Quit(), timeout=_QUIT_PATIENCE)
                await vm.wait_exit()
        if vm.record.qemu.alive():
            await vm.power.kill()
    await vm.close()
    left(vm.paths, leaving)


def left(paths: VmPaths, leaving: Leaving) -> None:
    """The same for a VM whose QEMU has gone."""
    if leaving.keep:
        note_moved(paths, leaving.name, leaving.destination)
        end(paths)
        return
    try:
        definitions.remove(paths.name)
    except StateError:  # disks of other VMs are made from its own
        note_moved(paths, leaving.name, leaving.destination)
        end(paths)


async def go_back(vm: Vm, leaving: Leaving) -> None:
    """Calls off what is still going on, and has the guest be as it was. Raises QmpError
    where QEMU has gone."""
    session = await vm.monitor()
    with contextlib.suppress(TimeoutError):
        await cancel(session)
    with contextlib.suppress(TimeoutError):
        await storage.clear(session)
    await drop_credentials(session)
    status = await session.execute(QueryStatus())
    if leaving.ran and not status.running:
        with contextlib.suppress(CommandError):
            await session.execute(Cont())
    end(vm.paths)
