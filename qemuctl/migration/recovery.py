"""Finishing a migration that was cut short, or going back: both sides are asked.

::

    the word was not given ─────────────────────────► the guest goes on here
    the word may have been given, and over there
        the guest has run, or is the user's ────────► the copy here is removed
        it waits, and was accepted ─────────────────► it goes on there
        it never came, or has gone without a step ──► discarded; it goes on here
        it runs, and its memory has yet to follow ──► that goes on (postcopy)
        nobody answers ─────────────────────────────► it stays as it is
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qemuctl.errors import DamagedFile, QemuctlError, StateError, WaitTimeout
from qemuctl.image.claim import claimed
from qemuctl.migration import link as links
from qemuctl.migration.arrival import Fate
from qemuctl.migration.destination import parse_destination
from qemuctl.migration.following import resume
from qemuctl.migration.leave import go_back, leave, left
from qemuctl.migration.phases import Phase
from qemuctl.paths import VmPaths
from qemuctl.process import runs
from qemuctl.qmp.migration import QueryMigrate
from qemuctl.registry.records.migration_journal import Leaving, attended, end
from qemuctl.registry.vms import find
from qemuctl.vm.attach import attach

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

_ANSWER = 60.0


async def settle(
    paths: VmPaths, leaving: Leaving, link: links.Link, vm: Vm | None
) -> bool:
    """Ends a migration whose word may have been given, by what the other side says;
    tells whether the VM is there now. ``vm`` is None where its QEMU has gone here.

    Raises QemuctlError where that side does not answer, or another home does: nothing
    is changed then.
    """
    token, channel = leaving.token, link.channel
    told = await channel.ask("ask", timeout=_ANSWER, token=token)
    fate, accepted = _understood(told, leaving)
    if fate is Fate.WAITING and accepted and await _beyond(leaving, vm):
        await channel.ask("take", timeout=_ANSWER, token=token, running=leaving.ran)
        fate = Fate.ARRIVED
    if fate is Fate.ARRIVED:
        await _arrived(paths, leaving, link, vm)
        return True
    await channel.ask("discard", timeout=_ANSWER, token=token)
    if vm is not None:
        await go_back(vm, leaving)
    else:
        end(paths)
    return False


def _understood(told: Any, leaving: Leaving) -> tuple[Fate, bool]:
    try:
        fate, accepted, home = Fate(told["fate"]), bool(told["accepted"]), told["home"]
    except (TypeError, KeyError, ValueError) as error:
        raise QemuctlError("the other side makes no sense") from error
    if home != leaving.home:
        raise QemuctlError(
            f"another home than the one that it went to answers in "
            f"{leaving.destination}",
            hint="is its file system mounted, its QEMUCTL_HOME the same?",
        )
    return fate, accepted


async def _beyond(leaving: Leaving, vm: Vm | None) -> bool:
    """Whether the guest can only go on there: here not all is left of it."""
    if vm is None or not leaving.postcopy:
        return True
    status = (await vm.execute(QueryMigrate())).status or ""
    return status.startswith("postcopy") or status == "completed"


async def _arrived(
    paths: VmPaths, leaving: Leaving, link: links.Link, vm: Vm | None
) -> None:
    if vm is not None:
        if leaving.postcopy and vm.record.qemu.alive():
            await resume(vm, link, leaving.token)
        await leave(vm, leaving)
    else:
        left(paths, leaving)
    with contextlib.suppress(QemuctlError):  # it is there, all the same
        await link.channel.ask("finish", timeout=_ANSWER, token=leaving.token)


async def recover(name: str, *, here: bool = False) -> bool:
    """Ends a migration that was cut short; tells whether the VM is elsewhere now.

    With ``here`` the other side is not asked: its user knows that it is gone for
    good. Raises StateError where there is nothing to recover or somebody is at it,
    QemuctlError where the other side does not answer.
    """
    paths = find(name)
    leaving = _read(paths, here=here)
    if leaving is None:
        raise StateError(f"recover {name}", "here", "no migration of it was cut short")
    if attended(paths):
        raise StateError(
            f"recover {name}", "running", "it is just being migrated",
            hint=f"how far it is: qemuctl migrate-status {name}; to call it off: "
            f"qemuctl migrate-cancel {name}",
        )  # fmt: skip
    async with _alone(paths):
        leaving = _read(paths, here=here)
        if leaving is None:  # another one has done it
            return False
        is_on = runs(paths.lock)
        vm = await attach(name) if is_on else None
        try:
            return await _recovered(paths, leaving, vm, here=here)
        finally:
            if vm is not None:
                await vm.close()
            # Sockets of the command that was killed.
            shutil.rmtree(paths.run / "move", ignore_errors=True)


def _read(paths: VmPaths, *, here: bool) -> Leaving | None:
    """As `Leaving.read`; with ``here``, what is damaged is ended like any other."""
    try:
        return Leaving.read(paths)
    except DamagedFile:
        if not here:
            raise
        # Its user lets the guest run, who knows whether it ran.
        return Leaving(
            token="", destination="", name=paths.name, receiver="", controller=None,
            phase=Phase.CHECK, ran=False, keep=False,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def _alone(paths: VmPaths) -> AsyncIterator[None]:
    """For the block nobody else changes or moves the VM. Raises WaitTimeout."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(_ANSWER):
                await stack.enter_async_context(claimed(paths.changing))
        except TimeoutError as error:
            stage = f"another command that changes {paths.name}"
            raise WaitTimeout(stage, _ANSWER) from error
        yield


async def _recovered(
    paths: VmPaths, leaving: Leaving, vm: Vm | None, *, here: bool
) -> bool:
    if here or not leaving.said_go:
        if vm is not None:
            await go_back(vm, leaving)
        else:
            end(paths)
        return False
    destination = parse_destination(leaving.destination)
    if destination.home is not None and not destination.home.is_dir():
        raise QemuctlError(f"the home that it went to is not there: {destination.home}")
    folder = paths.run / "move"
    async with links.opened(destination, folder, leaving.receiver) as link:
        return await settle(paths, leaving, link, vm)
