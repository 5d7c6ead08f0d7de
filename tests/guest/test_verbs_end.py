"""Guests that reboot, panic, crash and shut down while a test uses them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from qemuctl import Spec
from qemuctl.errors import AgentError, UnexpectedExit
from qemuctl.power import power
from qemuctl.testing import Guest, SyncGuest
from tests.guest.conftest import Home
from tests.guest.verbs import guest_of, told

BOOT = "cat /proc/sys/kernel/random/boot_id"
# A new boot of the kernel, whose memory is empty.
ANEW = "[ ! -e /tmp/old ]"


@pytest.fixture
def vm(here: Home) -> Iterator[SyncGuest]:
    with guest_of(Spec(name="ends", image="tiny"), here) as guest:
        yield guest


# Whatever waits, and what it is told when the guest ends.
WAITING: list[Callable[[Guest], object]] = [
    lambda vm: vm.run("sleep 600"),
    lambda vm: vm.succeed(["sleep", "600"]),
    lambda vm: vm.wait_until_succeeds("false"),
    lambda vm: vm.wait_for_file("/never"),
    lambda vm: vm.wait_for_console("never said"),
    lambda vm: vm.wait_for_event("WATCHDOG"),
]


def test_a_guest_reboots_and_panics_and_whoever_waits_hears_of_it(
    vm: SyncGuest,
) -> None:
    before = vm.succeed(BOOT, "touch /tmp/old")
    port = vm.forward(80)
    vm.reboot()
    assert vm.succeed(BOOT) != before
    assert vm.run(ANEW).ok
    assert vm.forward(80) == port
    assert vm.wait_for_event("RESET").data["guest"]

    # Pulled from under a command, and from under a wait that lives on.
    vm.succeed("touch /tmp/old; (sleep 0.5; reboot -f) >/dev/null 2>&1 &")
    with pytest.raises(AgentError, match="went away while the command ran"):
        vm.run("sleep 600")
    vm.wait_until_succeeds(ANEW)
    vm.succeed("touch /tmp/old; (sleep 0.5; reboot -f) >/dev/null 2>&1 &")
    vm.wait_until_succeeds(ANEW)

    ends = asyncio.run(_panic(vm._guest))
    for end in ends:
        assert isinstance(end, UnexpectedExit), repr(end)
        assert "ended: guest panicked" in str(end)
        assert "Kernel panic - not syncing: sysrq triggered crash" in told(end)
    with pytest.raises(UnexpectedExit, match="guest panicked"):
        vm.run("true")


async def _panic(vm: Guest) -> list[object]:
    """What all waiting verbs end with; none waits for its own time to be over."""
    waiting = [asyncio.ensure_future(work(vm)) for work in WAITING]  # type: ignore[arg-type]
    await vm.wait_until_succeeds("[ $(ps -o args | grep -c '^sleep 600') = 2 ]")
    ends = await asyncio.gather(
        *waiting, vm.run("echo c >/proc/sysrq-trigger"), return_exceptions=True
    )
    return list(ends)


def test_a_guest_that_refuses_to_reboot_is_asked_again(
    vm: SyncGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "_ASK_EVERY", 3.0)
    # Refuses once, and too late for anybody to hear of it.
    script = "#!/bin/sh\nmv /bin/real /bin/shutdown; sleep 1; exit 1\n"
    vm.succeed("mv /bin/shutdown /bin/real")
    vm.run("cat >/bin/shutdown; chmod +x /bin/shutdown; touch /tmp/old", input=script)
    begun = time.monotonic()
    vm.reboot()
    assert time.monotonic() - begun > 3
    assert vm.run(ANEW).ok


def test_after_a_crash_every_verb_says_how_the_guest_ended(here: Home) -> None:
    spec = Spec(name="crash", display="vnc")
    with guest_of(spec, here, timeout=0) as vm:
        vm.crash()
        for again in (vm.crash, vm.shutdown):
            again()
        for work in (
            lambda: vm.run("true"),
            lambda: vm.wait_for_unit("x"),
            lambda: vm.wait_for_event("RESET"),
            lambda: vm.screenshot("/never.png"),
            lambda: vm.type("x"),
            lambda: vm.forward(22),
            lambda: vm.block_network(),
            lambda: vm.copy_in("/etc/passwd", "/"),
            lambda: vm.reboot(),
            lambda: vm.pause(),
        ):
            with pytest.raises(UnexpectedExit, match="killed by signal 9"):
                work()
    with pytest.raises(UnexpectedExit):  # and is gone
        asyncio.run(_use(vm._guest))


async def _use(vm: Guest) -> None:
    vm.loop = asyncio.get_running_loop()
    await vm.run("true")


def test_a_guest_that_shuts_down_tells_how_it_ended(vm: SyncGuest) -> None:
    report = vm.shutdown()
    assert report is not None
    assert (report.step, report.outcome.reason) == ("agent", "guest-shutdown")
    assert vm.shutdown() is None
    with pytest.raises(UnexpectedExit, match="stopped by the guest"):
        vm.run("true")
    assert "tiny: ready" in vm.console
