"""Waiting for what only looking again and again can tell, inside of the guest.

One command in the guest looks, some ten times a second, so that nothing is sent
for each look. When the guest reboots, or its agent starts anew, it is begun again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from typing import TYPE_CHECKING

from qemuctl.errors import AgentError, AgentRefused, UsageError
from qemuctl.testing.command import Command, CommandFailed, by_shell, in_short, too_late

if TYPE_CHECKING:
    from qemuctl.guest.agent import Result
    from qemuctl.vm.vm import Vm

# `look` gives 0 when it is so, 1 when it is not yet, 2 when it will never be, and
# leaves in `last` what there is to say. TERM is how a time-out ends the loop. It
# pauses for as long as a look takes, a tenth of a second at least and one at most:
# a guest must have time to do what is waited for.
_LOOP = r"""
last=
trap 'printf %s "$last"; exit 143' TERM
hundredths() { read -r now _ </proc/uptime; now=${now%.*}${now#*.}; }
while :; do
  hundredths
  begun=$now
  look "$@"
  case $? in
  0) printf %s "$last"; exit 0 ;;
  2) printf %s "$last"; exit 2 ;;
  esac
  hundredths
  pause=$((now - begun))
  [ "$pause" -gt 10 ] || pause=10
  [ "$pause" -lt 100 ] || pause=100
  sleep "$((pause / 100)).$((pause % 100 / 10))" 2>/dev/null || sleep 1
done
"""

# Standard error first, then the token $1, then standard output, in one variable:
# no file in the guest that would have to be removed. $2 is the command.
_RUN = r"""
attempt() {
  last=$(
    { out=$(/bin/sh -c "$2" 2>&3 3>&-); } 3>&1
    status=$?
    printf '%s%s' "$1" "$out"
    exit "$status"
  )
}
"""
_SUCCEEDS = _RUN + 'look() { attempt "$@" || return 1; }\n'
_FAILS = _RUN + 'look() { attempt "$@" || return 0; return 1; }\n'
_FILE = 'look() { [ -e "$1" ] || return 1; }\n'
_UNIT = r"""
look() {
  last=$(systemctl is-active "$1" 2>&1)
  status=$?
  case "$status $last" in
  "0 "*) return 0 ;;
  127*) return 2 ;;
  *" failed") ;;
  *) return 1 ;;
  esac
  last=$(systemctl status --no-pager --full --lines=30 "$1" 2>&1)
  return 2
}
"""
# The state 0A is LISTEN; one of the two files may not be there.
_PORT = r"""
look() {
  grep -Eqs "^ *[0-9]+: ($1):$2 [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp /proc/net/tcp6 ||
    return 1
}
"""
# $1 is 1 or 0, the rest are the cards' addresses. Nothing can be read from an
# interface that is not in use.
_CARRIER = r"""
look() {
  last= wanted=$1
  for net in /sys/class/net/*; do
    read -r mac <"$net/address" || continue
    case " $* " in *" $mac "*) ;; *) continue ;; esac
    { read -r carrier <"$net/carrier"; } 2>/dev/null || continue
    [ "$carrier" = "$wanted" ] || last="$last${net##*/} "
  done
  [ -z "$last" ]
}
"""
# Control characters, which no message shows.
_UNSEEN = "\x01\x02\x03\x04\x05\x06\x07\x0e\x0f\x10\x11\x12\x13\x14\x15\x16"
# Seconds: nothing tells that a channel that broke is there again, see
# `Vm.wait_ready`, and a guest that answers nonsense must not keep us busy.
_PAUSE = 0.1


async def until_succeeds(vm: Vm, command: str, timeout: float) -> str:
    """What a command writes once it succeeds."""
    stage = f"success in the guest of: {in_short(by_shell(command))}"
    return await _outcome(vm, stage, _SUCCEEDS, command, timeout)


async def until_fails(vm: Vm, command: str, timeout: float) -> str:
    """What a command writes once it fails."""
    stage = f"failure in the guest of: {in_short(by_shell(command))}"
    return await _outcome(vm, stage, _FAILS, command, timeout)


async def _outcome(vm: Vm, stage: str, look: str, command: str, timeout: float) -> str:
    token = "".join(secrets.choice(_UNSEEN) for _ in range(16))
    result = await watch(vm, stage, look, token, command, timeout=timeout)
    return result.text.rpartition(token)[2]


async def until_file(vm: Vm, path: str, timeout: float) -> None:
    """Waits until there is something at a path."""
    await watch(vm, f"the file {path} in the guest", _FILE, path, timeout=timeout)


async def until_unit(vm: Vm, unit: str, timeout: float) -> None:
    """Waits until systemd says that a unit is active.

    Raises CommandFailed with the unit's status when it has failed.
    """
    if unit.startswith("-"):
        raise UsageError(f"not the name of a unit: {unit!r}")
    stage = f"the unit {unit} to be active"
    result = await watch(vm, stage, _UNIT, unit, timeout=timeout)
    if not result.ok:
        raise CommandFailed(f"the unit is not active: {unit}", result)


async def until_port(vm: Vm, port: int, address: str, timeout: float) -> None:
    """Waits until something in the guest listens on a TCP port."""
    if not 1 <= port <= 65535:
        raise UsageError(f"not a port: {port}")
    await watch(
        vm,
        f"port {port} of {address} in the guest",
        _PORT,
        "|".join(listeners(address)),
        f"{port:04X}",
        timeout=timeout,
    )


async def until_carrier(vm: Vm, macs: list[str], *, up: bool, timeout: float) -> None:
    """Waits until the guest sees that the cables of some cards are in, or out."""
    stage = f"the guest to see the cable {'in' if up else 'out'}"
    wanted = "1" if up else "0"
    await watch(vm, stage, _CARRIER, wanted, *macs, timeout=timeout)


def listeners(address: str) -> list[str]:
    """The local addresses, as /proc/net/tcp and tcp6 write them, of sockets that
    take connections to ``address``. Raises UsageError for what is no address."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError as error:
        raise UsageError(
            f"not an address: {address!r}", hint="write 127.0.0.1 or ::1, not a name"
        ) from error
    every = [_kernels(ipaddress.IPv6Address("::"))]
    if isinstance(wanted, ipaddress.IPv4Address):
        mapped = ipaddress.IPv6Address(f"::ffff:{wanted}")
        every += [_kernels(ipaddress.IPv4Address(0)), _kernels(mapped)]
    return [_kernels(wanted), *every]


def _kernels(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Words of 32 bits as a little-endian guest prints them."""
    packed = address.packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(word[::-1].hex().upper() for word in words)


async def watch(
    vm: Vm, stage: str, look: str, *arguments: str, timeout: float
) -> Result:
    """Runs a loop in the guest until its ``look`` has an answer.

    Raises WaitTimeout with what it saw last, UnexpectedExit when QEMU ends.
    """
    latest: Command | None = None

    async def through_restarts() -> Result:
        nonlocal latest
        while True:
            await vm.wait_ready(timeout=timeout)
            latest = Command(vm, [*by_shell(look + _LOOP), "sh", *arguments])
            try:
                return await latest.result()
            except AgentRefused:
                if latest.pid is None:
                    raise
            except AgentError:
                pass
            await asyncio.sleep(_PAUSE)

    try:
        return await vm.unless_ended(through_restarts(), timeout)
    except TimeoutError as error:
        words = "the guest agent did not answer"
        if latest is not None:
            words = latest.last_words()
        raise too_late(vm, stage, timeout, words) from error
