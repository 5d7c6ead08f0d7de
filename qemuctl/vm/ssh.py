"""ssh into a guest of which only the name is known, or that is still booting."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from qemuctl.connection.ssh import SSH_TIMEOUT, access_at, no_way, wait_ssh
from qemuctl.errors import WaitTimeout
from qemuctl.guest.ssh import Access
from qemuctl.registry.states import Action
from qemuctl.registry.vms import load
from qemuctl.vm.attach import attach
from qemuctl.vm.ssh_where import may_be_reached, where

if TYPE_CHECKING:
    from qemuctl.spec import Spec
    from qemuctl.vm.vm import Vm

# Seconds of waiting after which the guest may have another address by now.
_ASK_EVERY = 10.0


async def access(name: str) -> Access:
    """How to reach the ssh server of the running VM called ``name``.

    Raises NotFound, StateError when it is off or no way leads to its port 22, and
    HostError when there is no key pair and none can be made.
    """
    async with await attach(name, Action.SSH) as vm:
        return access_at(vm, load(name), await where(vm))


async def reached(vm: Vm, spec: Spec, timeout: float = SSH_TIMEOUT) -> Access:
    """As `access`, for a VM that is at hand, once its ssh server greets.

    A guest that boots may have its address later: the agent is asked again now and
    then. Raises as `access` and `wait_ssh` do.
    """
    end = time.monotonic() + timeout
    while True:
        at, last = await where(vm), end - time.monotonic() <= _ASK_EVERY
        if at is None and (last or not await may_be_reached(vm)):
            raise no_way(vm)
        patience = min(_ASK_EVERY, max(end - time.monotonic(), 0))
        if at is None:
            await asyncio.sleep(min(1, patience))  # no event tells of an address
            continue
        found = access_at(vm, spec, at)
        await vm.close()  # the monitor is for others while we wait
        try:
            await wait_ssh(vm, found, patience)
            return found
        except WaitTimeout:
            if last:
                raise
