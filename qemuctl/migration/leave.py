"""The end of a migration on the source's side: the VM has left, or it stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from qemuctl.errors import (
    CommandError,
    MigrationError,
    NotFound,
    QemuctlError,
    StateError,
)
from qemuctl.migration import storage
from qemuctl.migration.tls import drop_credentials
from qemuctl.paths import VmPaths
from qemuctl.qmp.commands import Cont, QueryStatus, Quit
from qemuctl.qmp.migration import cancel
from qemuctl.qmp.session import Session
from qemuctl.registry import removal
from qemuctl.registry.records.migration_journal import Leaving, end
from qemuctl.registry.records.moved_away import note_moved

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

_QUIT_PATIENCE = 10.0
# Seconds for the other side to let go of disks, and between looks at that: locks of
# files have no events.
_LOCKS_PATIENCE = 10.0
_LOCKS_LOOK = 0.2
# What a migration stops a guest in; one that panicked or met a bad disk stays so.
_STOPPED_BY_US = ("paused", "postmigrate", "finish-migrate")


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
    # Its shepherd, too: until that has ended, nothing can be removed.
    await vm.wait_exit()
    await vm.close()
    left(vm.paths, leaving)


def left(
    paths: VmPaths,
    leaving: Leaving,
    remove: Callable[[VmPaths], object] = lambda paths: removal.remove(paths.name),
) -> None:
    """The same for a VM whose QEMU has gone, or that was off."""
    if leaving.keep:
        note_moved(paths, leaving.name, leaving.destination)
        end(paths)
        return
    try:
        remove(paths)
    except NotFound:  # done before
        return
    except StateError:  # disks of other VMs are made from its own
        note_moved(paths, leaving.name, leaving.destination)
        end(paths)


async def go_back(vm: Vm, leaving: Leaving) -> None:
    """Calls off what is still going on, and has the guest be as it was; for a QEMU
    that has ended there is nothing to do. Raises MigrationError where it stays as it
    is: the journal then says what is to be done."""
    try:
        await _called_off(vm, leaving)
    except QemuctlError as error:
        if vm.record.qemu.alive():
            raise MigrationError(
                f"{vm.name} was not migrated, and does not go on here: {error.message}",
                leaving.phase, hint=f"qemuctl migrate-recover {vm.name}",
            ) from error  # fmt: skip
    end(vm.paths)


async def _called_off(vm: Vm, leaving: Leaving) -> None:
    session = await vm.monitor()
    with contextlib.suppress(TimeoutError):
        await cancel(session)
    with contextlib.suppress(TimeoutError):
        await storage.clear(session)
    await drop_credentials(session)
    if leaving.ran:
        await _let_run(session)


async def _let_run(session: Session) -> None:
    status = await session.execute(QueryStatus())
    if status.running or status.status not in _STOPPED_BY_US:
        return
    loop = asyncio.get_running_loop()
    end_of_patience = loop.time() + _LOCKS_PATIENCE
    while True:
        try:
            await session.execute(Cont())
            return
        except CommandError:
            # The other side's QEMU may have a disk that both see, until it has gone.
            if loop.time() > end_of_patience:
                raise
            await asyncio.sleep(_LOCKS_LOOK)
