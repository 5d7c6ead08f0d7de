"""A VM that is off, taken back to a snapshot: with its RAM it starts there."""

from __future__ import annotations

import asyncio
import contextlib

from qemuctl.boot.start import start
from qemuctl.errors import QemuctlError, StateError
from qemuctl.registry.records.past_loads import loaded
from qemuctl.registry.states import State
from qemuctl.snapshots.offline import take_disks_back
from qemuctl.snapshots.online import Reverted
from qemuctl.snapshots.records import Records
from qemuctl.vm.vm import Vm


async def revert(vm: str, name: str) -> Reverted:
    """Takes a VM that is off back to a snapshot.

    To one with RAM it is started there, and is then running or paused as it was; to
    one of disks only these are taken back (qemu-img snapshot -a), all or none, and
    it stays off. Raises as `Snapshots.revert`, `start` and `create_snapshot`;
    after an error the VM is off.
    """
    entry = await take_disks_back(vm, name)
    if not entry.has_ram:
        return Reverted(name=name, state=State.OFF)
    started = await start(vm, paused=True)
    if started is None:
        raise StateError(f"revert {vm}", State.RUNNING, "it was started meanwhile")
    async with started:
        try:
            return await started.snapshots.revert(name)
        except QemuctlError:
            await asyncio.shield(_put_down(started))
            raise
        except asyncio.CancelledError:
            # What has begun to load is there by now, and goes on.
            now = Records.read(started.paths.snapshots).current
            if now != name or not loaded(started.paths.events):
                await asyncio.shield(_put_down(started))
            raise


async def _put_down(vm: Vm) -> None:
    with contextlib.suppress(QemuctlError):
        await vm.power.stop(timeout=0)
