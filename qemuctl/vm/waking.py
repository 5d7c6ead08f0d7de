"""What makes a fork a machine of its own, told to its guest by the agent.

A fork wakes up as the template it is a copy of: with its host name, its cards'
addresses, its clock, and the same random numbers ahead of it.
"""

from __future__ import annotations

import secrets
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from qemuctl.cmdline.network import default_mac
from qemuctl.errors import AgentError, TemplateError
from qemuctl.guest.agent import Agent
from qemuctl.qmp.commands import Cont
from qemuctl.spec import Spec
from qemuctl.vm.template import Guest

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

WAKE_TIMEOUT = 60.0
# RNDRESEEDCRNG of random(4): what was written to it counts from now on.
_RESEED = {
    "perl": """perl -e 'open F, ">/dev/urandom"; ioctl F, 0x5207, 0 or exit 1'""",
    "python3": """python3 -c 'import fcntl
fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)'""",
}
# Linux tells its version of virtio and ACPI devices below /sys.
_ASK = """
set -- /sys/bus/acpi/drivers/vmgenid/*:*
if [ -e "$1" ]; then echo vmgenid
elif command -v perl >/dev/null; then echo perl
elif command -v python3 >/dev/null; then echo python3
else echo none; fi
now=$(date +%s)
date -u -s "@$now.5" >/dev/null 2>&1 && echo fine || echo coarse
if pidof systemd-networkd NetworkManager dhcpcd connmand >/dev/null; then echo kept
else echo free; fi
"""


def macs(spec: Spec, name: str) -> tuple[str, ...]:
    """The addresses of a VM's cards, in the spec's order."""
    return tuple(
        nic.mac or default_mac(name, index) for index, nic in enumerate(spec.nics)
    )


async def examine(agent: Agent, macs: tuple[str, ...]) -> Guest:
    """Finds out how a guest can be told who it is.

    Raises TemplateError for one that has no shell, AgentError, WaitTimeout.
    """
    try:
        result = await agent.run(["/bin/sh", "-c", _ASK], timeout=WAKE_TIMEOUT)
        reseed, clock, addresses = result.text.split()
    except (AgentError, ValueError) as error:
        raise TemplateError(
            f"its guest cannot be asked what it can do: {error}",
            hint="a template's guest needs an agent that may run commands, and a shell",
        ) from error
    return Guest(
        macs=macs,
        reseed=None if reseed == "none" else reseed,
        readdress=addresses == "free",
        fine_clock=clock == "fine",
    )


async def wake(vm: Vm, guest: Guest, hostname: str, own: tuple[str, ...]) -> None:
    """Lets a fork's guest run and gives it an identity of its own.

    ``own`` are its cards' addresses. Raises WaitTimeout, UnexpectedExit, and
    TemplateError when the guest does not do as it is told.
    """
    await vm.execute(Cont(), timeout=WAKE_TIMEOUT)
    changed = {old: new for old, new in zip(guest.macs, own, strict=True) if old != new}
    with vm.deadline("the fork's guest to answer", WAKE_TIMEOUT) as left:
        result = await vm.unless_ended(
            vm.agent.run(["/bin/sh", "-c", _script(guest, hostname, changed)]), left
        )
    if not result.ok:
        words = result.stderr.decode(errors="replace").strip() or "it gave no reason"
        raise TemplateError(f"the guest of {vm.name} did not become its own: {words}")


def _script(guest: Guest, hostname: str, changed: Mapping[str, str]) -> str:
    return "\n".join(_lines(guest, hostname, changed))


def _lines(guest: Guest, hostname: str, changed: Mapping[str, str]) -> Iterator[str]:
    """What the shell runs; each program costs an emulated guest 20 ms, so what the
    shell can do itself is left to it."""
    name = shlex.quote(hostname[:64])
    yield "set -e"
    yield f"echo {secrets.token_hex(32)} > /dev/urandom"
    if guest.reseed in _RESEED:
        yield _RESEED[guest.reseed]
    yield f"echo {name} > /proc/sys/kernel/hostname"
    yield f"if [ -e /etc/hostname ]; then echo {name} > /etc/hostname; fi"
    machine_id = uuid.uuid4().hex
    yield f"if [ -s /etc/machine-id ]; then echo {machine_id} > /etc/machine-id; fi"
    if changed:
        yield "for card in /sys/class/net/*; do read -r mac < $card/address || continue"
        yield "case $mac in"
        for old, new in changed.items():
            yield f"{old}) ip link set ${{card##*/}} address {new};;"
        yield "esac; done"
    now = time.time()
    seconds = f"{now:.3f}" if guest.fine_clock else f"{round(now)}"
    # Last, and in the shell's own place.
    yield f"exec date -u -s @{seconds} > /dev/null"
