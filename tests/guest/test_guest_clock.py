"""A guest's clock runs as fast as the host's, whatever happens while it boots."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import qemuctl
from qemuctl.host.resources import tsc_khz
from qemuctl.paths import VmPaths
from qemuctl.registry.plan import draft
from qemuctl.spec import parse_spec
from qemuctl.templates.guest_clock import check_clock, read_clock

pytestmark = pytest.mark.usefixtures("home", "qemu")

# Seconds. The kernel measures its clock for 10 ms at a time.
_STOPPED, _RUNNING = 0.008, 0.002
# The kernel says so only of a rate that differs by less than a hundredth.
LOG = "until dmesg | grep -q 'Refined TSC'; do usleep 200000; done; dmesg"


async def starve(vm: qemuctl.Vm) -> None:
    """Lets QEMU run a fifth of the time until the kernel has its clock's rate."""
    log, pid = vm.paths.serial_log, vm.record.qemu.pid
    while b"tsc: Detected" not in log.read_bytes():
        # Time itself is what is taken from it here.
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(_STOPPED)
        finally:
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(_RUNNING)


@pytest.mark.parametrize("machine", ["q35", "pc"])
async def test_a_guest_that_was_starved_while_it_booted_knows_its_clock(
    machine: str,
) -> None:
    spec = parse_spec(f"name: c\nimage: tiny\nmachine: {machine}\nnics: []\n")
    told = draft(spec, VmPaths.of("c")).spec.boot.cmdline or ""
    loud = spec.boot.model_copy(update={"cmdline": told.replace(" quiet ", " ")})
    spec = spec.model_copy(update={"boot": loud})
    async with qemuctl.launch(spec, paused=True) as vm:
        await vm.power.resume()
        await starve(vm)
        await vm.wait_ready()
        await check_clock(vm.agent, await read_clock(vm.agent))
        log = (await vm.agent.run(["sh", "-c", LOG], timeout=60)).text
    khz = tsc_khz()
    assert khz is not None
    # Of the processor, or of its TSC alone where the kernel has measured the first.
    assert f"tsc: Detected {khz // 1000}.000 MHz" in log
    assert "tsc: Using PIT" not in log
