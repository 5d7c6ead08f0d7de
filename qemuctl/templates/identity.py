"""What makes a fork a machine of its own, told to its guest by the agent.

A fork wakes up as the template it is a copy of: with its host name, its cards'
addresses, its clock, and the same random numbers ahead of it.
"""

from __future__ import annotations

import secrets
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from qemuctl.cmdline.mac import default_mac
from qemuctl.errors import AgentError, TemplateError
from qemuctl.guest.agent import Agent, Result
from qemuctl.qmp.commands import Cont
from qemuctl.registry.template import Guest
from qemuctl.spec import Spec

if TYPE_CHECKING:
    from qemuctl.vm.vm import Vm

WAKE_TIMEOUT = 60.0
# RNDRESEEDCRNG of random(4): what was written to it counts from now on.
_RESEED = {
    "perl": """perl -e 'open F, ">/dev/urandom"; ioctl F, 0x5207, 0 or exit 1'""",
    "python3": """python3 -c 'import fcntl
fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)'""",
}
# Linux lists the devices of a driver below /sys: vmgenid is an ACPI driver, and from
# 6.10 on a platform driver.
_ASK = """
set -- /sys/bus/*/drivers/vmgenid/*:*
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
    await _go_on(vm, identity(guest, hostname, own))


def identity(guest: Guest, hostname: str, own: Sequence[str]) -> list[str]:
    """The lines of a shell script that make a fork's guest somebody else; ``own`` are
    its cards' addresses."""
    changed = {old: new for old, new in zip(guest.macs, own, strict=True) if old != new}
    return ["set -e", *_identity(guest, changed), *_moment(guest, hostname)]


async def wake_again(vm: Vm, guest: Guest, hostname: str) -> None:
    """Lets a guest go on that has had its identity and was stopped since then: it is
    told what time it is. Raises as `wake` does."""
    await _go_on(vm, ["set -e", *_moment(guest, hostname)])


async def _go_on(vm: Vm, script: Sequence[str]) -> None:
    argv = ["/bin/sh", "-c", "\n".join(script)]
    with vm.deadline("the fork's guest to answer", WAKE_TIMEOUT) as left:
        result = await vm.unless_ended(_continued(vm, argv), left)
    if not result.ok:
        words = result.stderr.decode(errors="replace").strip() or "it gave no reason"
        raise TemplateError(f"the guest of {vm.name} did not become its own: {words}")


async def _continued(vm: Vm, argv: Sequence[str]) -> Result:
    await vm.agent.connect()
    await vm.execute(Cont(), timeout=WAKE_TIMEOUT)
    # On a host with many guests it takes its time; the caller knows how much.
    pid = await vm.agent.start(argv, capture=True, timeout=None)
    return Result.of(argv, await vm.agent.finished(pid))


# Each program that the shell starts costs an emulated guest 20 ms, so what the shell
# can do itself is left to it.

# Has the kernel announce a new address by a gratuitous ARP (arp_notify of the kernel's
# ip-sysctl). A guest that sent something before it had its own address has told the
# network, or QEMU's user network, the template's: no connection would reach it until it
# sends something again.
_ANNOUNCE = "{ echo 1 > /proc/sys/net/ipv4/conf/$card/arp_notify; } 2>/dev/null || :"


def _identity(guest: Guest, changed: Mapping[str, str]) -> Iterator[str]:
    yield f"echo {secrets.token_hex(32)} > /dev/urandom"
    if guest.reseed in _RESEED:
        yield _RESEED[guest.reseed]
    yield _written("machine-id", uuid.uuid4().hex)
    if changed:
        yield "for card in /sys/class/net/*; do read -r mac < $card/address || continue"
        yield "card=${card##*/}"
        yield "case $mac in"
        for old, new in changed.items():
            yield f"{old}) {_ANNOUNCE}; ip link set $card address {new};;"
        yield "esac; done"


def _written(name: str, text: str) -> str:
    # Where /etc cannot be written to, it is as the image has it.
    tell = f"{{ echo {text} > /etc/{name}; }} 2>/dev/null || :"
    return f"if [ -s /etc/{name} ]; then {tell}; fi"


def _moment(guest: Guest, hostname: str) -> Iterator[str]:
    """What may be another when a guest goes on after a while: its name, as it may be
    somebody else's now, and the time."""
    name = shlex.quote(hostname[:64])
    yield f"echo {name} > /proc/sys/kernel/hostname"
    yield _written("hostname", name)
    now = time.time()
    seconds = f"{now:.3f}" if guest.fine_clock else f"{round(now)}"
    # Last, and in the shell's own place.
    yield f"exec date -u -s @{seconds} > /dev/null"
