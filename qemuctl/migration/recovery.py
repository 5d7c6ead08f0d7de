"""Finishing a migration that was cut short, or going back: both sides are asked.

::

    the word was not given ─────────────────────────► the guest goes on here
    the word may have been given, and over there
        the guest has run, or is the user's ────────► the copy here is removed
        it waits, and all of it is there ───────────► it goes on there
        it never came, or has gone without a step ──► discarded; it goes on here
        it runs, and its memory has yet to follow ──► that goes on (postcopy)
        nobody answers ─────────────────────────────► it stays as it is
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qemuctl.errors import QmpError, StateError
from qemuctl.migration import link as links
from qemuctl.migration.arrival import Fate
from qemuctl.migration.destination import parse_destination
from qemuctl.migration.following import resume
from qemuctl.migration.leave import go_back, leave, left
from qemuctl.paths import VmPaths
from qemuctl.process import held
from qemuctl.vm.attach import attach
from qemuctl.vm.definitions import find
from qemuctl.vm.leaving import Leaving, end

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

_ANSWER = 60.0


async def settle(
    paths: VmPaths, leaving: Leaving, link: links.Link, vm: Vm | None
) -> bool:
    """Ends a migration whose word may have been given, by what the other side says;
    tells whether the VM is there now. ``vm`` is None where its QEMU has gone here.

    Raises QemuctlError where that side does not answer: nothing is changed then.
    """
    token, channel = leaving.token, link.channel
    told: dict[str, Any] = await channel.ask("ask", timeout=_ANSWER, token=token)
    fate = Fate(told["fate"])
    if fate is Fate.WAITING and told["complete"]:
        await channel.ask("take", timeout=_ANSWER, token=token, running=leaving.ran)
        fate = Fate.ARRIVED
    if fate is Fate.ARRIVED:
        if vm is not None:
            if leaving.postcopy and vm.record.qemu.alive():
                await resume(vm, link, token)
            await leave(vm, leaving)
        else:
            left(paths, leaving)
        await channel.ask("finish", timeout=_ANSWER, token=token)
        return True
    await channel.ask("discard", timeout=_ANSWER, token=token)
    if vm is not None:
        await _back(vm, leaving)
    else:
        end(paths)
    return False


async def _back(vm: Vm, leaving: Leaving) -> None:
    try:
        await go_back(vm, leaving)
    except (QmpError, StateError):
        if vm.record.qemu.alive():
            raise
        end(vm.paths)


async def recover(name: str, *, here: bool = False) -> bool:
    """Ends a migration that was cut short; tells whether the VM is elsewhere now.

    With ``here`` the other side is not asked: its user knows that it is gone for
    good. Raises StateError where there is nothing to recover or somebody is at it,
    QemuctlError where the other side does not answer.
    """
    paths = find(name)
    leaving = Leaving.read(paths)
    if leaving is None:
        raise StateError(f"recover {name}", "here", "no migration of it was cut short")
    if leaving.attended:
        raise StateError(
            f"recover {name}", "running", "it is just being migrated",
            hint=f"how far it is: qemuctl migrate-status {name}; to call it off: "
            f"qemuctl migrate-cancel {name}",
        )  # fmt: skip
    is_on = held(paths.lock) and not paths.busy.exists()
    vm = await attach(name) if is_on else None
    try:
        if here or not leaving.said_go:
            if vm is not None:
                await _back(vm, leaving)
            else:
                end(paths)
            return False
        destination = parse_destination(leaving.destination)
        folder = paths.run / "move"
        async with links.opened(destination, folder, leaving.receiver) as link:
            return await settle(paths, leaving, link, vm)
    finally:
        if vm is not None:
            await vm.close()
