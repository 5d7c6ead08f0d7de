"""A migration that fails on the source's side: its guest goes on here, or nobody knows.

Before the word was given it goes on here, whatever the other side does. After it, only
if the other side says that it does not go on there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qemuctl.errors import MigrationError, QemuctlError
from qemuctl.migration import link as links
from qemuctl.migration.channel import ChannelLost
from qemuctl.migration.destination import parse_destination
from qemuctl.migration.leave import go_back
from qemuctl.migration.recovery import settle
from qemuctl.registry.records.migration_journal import Leaving

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm


async def undo(
    vm: Vm, leaving: Leaving, link: links.Link, error: BaseException
) -> None:
    """Ends what ``error`` has cut short. Raises MigrationError where the guest is there
    now, or the outcome is not known."""
    if not leaving.said_go:
        # First of all: what is there holds the disks' locks, and our writes to it.
        await link.close()
        await go_back(vm, leaving)
        return
    try:
        there = await _settled(vm, leaving, link)
    except MigrationError:
        raise
    except QemuctlError as lost:
        raise MigrationError(
            f"the outcome of the migration of {vm.name} is not known: {lost.message}; "
            "its guest stands still here",
            leaving.phase, hint=f"both sides are asked by: qemuctl migrate-recover "
            f"{vm.name}",
        ) from error  # fmt: skip
    if there:
        raise MigrationError(
            f"{vm.name} runs in {leaving.destination} now, though not all went well: "
            f"{error}",
            leaving.phase,
        ) from error


async def _settled(vm: Vm, leaving: Leaving, link: links.Link) -> bool:
    with contextlib.suppress(ChannelLost):
        return await settle(vm.paths, leaving, link, vm)
    # The way to it has gone, and perhaps not the other side.
    destination = parse_destination(leaving.destination)
    async with links.opened_again(destination, leaving.receiver) as again:
        return await settle(vm.paths, leaving, again, vm)
