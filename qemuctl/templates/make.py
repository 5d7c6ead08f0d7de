"""Making a template: a guest is booted, got ready, and stopped for good."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qemuctl import bounded
from qemuctl.boot.bring_up import Origin
from qemuctl.boot.throwaway import Furnish, PostMortem, begin, examined
from qemuctl.cmdline.ram import RamFile
from qemuctl.connection.connection import READY_TIMEOUT
from qemuctl.errors import TemplateError, WaitTimeout
from qemuctl.host.resources import free_space
from qemuctl.hotplug.nics.seen_by_guest import wait_for_leases
from qemuctl.image.overlay import create_overlay
from qemuctl.qmp.commands import Cont, Quit
from qemuctl.qmp.migration import MigrationFailed, save_state
from qemuctl.registry.plan import Stages
from qemuctl.registry.template import Guest
from qemuctl.spec import Spec
from qemuctl.structs import Struct
from qemuctl.templates.guest_clock import check_clock, read_clock
from qemuctl.templates.identity import examine, macs
from qemuctl.templates.key import Recipe
from qemuctl.thread import Tick, in_thread
from qemuctl.units import MIB, format_size
from qemuctl.vm.vm import Vm

# Beside the memory: the devices' state, and what the guest writes to its disks.
_MARGIN = 64 * MIB
# systemd's jobs, those of cloud-init among them; `degraded` is booted, too.
_BOOTED = """
[ -d /run/systemd/system ] || exit 0
systemctl is-system-running --wait
exit 0
"""


class Frozen(Struct):
    """What came of it; times in seconds."""

    guest: Guest
    machine: str
    boot_seconds: float
    freeze_seconds: float


async def freeze(
    spec: Spec,
    name: str,
    content: Path,
    recipe: Recipe,
    *,
    furnish: Furnish | None = None,
    timeout: float = READY_TIMEOUT,
    progress: Stages | None = None,
    post_mortem: PostMortem | None = None,
) -> Frozen:
    """Boots a guest as the throwaway VM ``name`` and puts what it is after its
    recipe into ``content``, an empty folder.

    ``furnish`` puts disks into its folder before. ``timeout`` in seconds is for
    the boot, and again for the recipe's command; ``post_mortem`` is as for `fresh`.
    Raises TemplateError with what
    the command said, WaitTimeout, UnexpectedExit, and what a start raises.
    """
    _check_space(content, spec)
    ram = RamFile(path=content / "ram", shared=True)
    started = time.monotonic()
    attached = await begin(
        spec, name, furnish=furnish, origin=Origin(ram=ram), progress=progress
    )
    async with attached as vm:
        await vm.execute(Cont())
        async with examined(vm, post_mortem):
            await _ready(vm, recipe, timeout, _leasing(spec, name))
        guest = await examine(vm.agent, macs(spec, name))
        booted = time.monotonic()
        with _bounded(vm, "the machine's state to be written", timeout) as left:
            await vm.unless_ended(_save(vm, content / "state"), left)
            async with asyncio.timeout(left):
                await vm.execute(Quit())
                await vm.wait_exit()
        frozen = Frozen(
            guest=guest,
            machine=vm.record.machine,
            boot_seconds=round(booted - started, 3),
            freeze_seconds=round(time.monotonic() - booted, 3),
        )
        await in_thread(partial(_keep_files, vm, content))
    return frozen


def _check_space(content: Path, spec: Spec) -> None:
    # A guest that writes to memory for which there is no room kills its QEMU.
    free, needed = free_space(content), spec.memory.size + _MARGIN
    if free < needed:
        raise TemplateError(
            f"too little room for the guest's memory in {content.parent}: "
            f"{format_size(free)} are free, it may take {format_size(needed)}"
        )


def _leasing(spec: Spec, name: str) -> tuple[str, ...]:
    """The cards to which QEMU's own network gives an address."""
    cards = zip(spec.nics, macs(spec, name), strict=True)
    return tuple(mac.lower() for nic, mac in cards if nic.type == "user")


async def _ready(
    vm: Vm, recipe: Recipe, timeout: float, leasing: tuple[str, ...]
) -> None:
    await vm.wait_ready(timeout=timeout)
    clock = await read_clock(vm.agent)
    # A DHCP client that is frozen while it asks goes on with the template's MAC in a
    # fork, which has another; and the recipe's command may need the network.
    await wait_for_leases(vm, leasing)
    if recipe.wait == "boot":
        await _run(vm, _BOOTED, "the guest's services to be up", timeout)
    if recipe.run is not None:
        await _run(vm, recipe.run, f"the end of {recipe.run!r} in the guest", timeout)
    # What a fork need not write to its own disk.
    await _run(vm, "sync", "the guest's disks to be written", timeout)
    await check_clock(vm.agent, clock)


async def _run(vm: Vm, command: str, stage: str, timeout: float) -> None:
    with _bounded(vm, stage, timeout) as left:
        result = await vm.unless_ended(vm.agent.run(["/bin/sh", "-c", command]), left)
    if not result.ok:
        words = (result.stderr or result.stdout).decode(errors="replace").strip()
        raise TemplateError(
            f"the command that was to get the guest ready failed "
            f"(status {result.exit_status}): {command}",
            hint=words[-2000:] or None,
        )


@contextlib.contextmanager
def _bounded(vm: Vm, stage: str, timeout: float) -> Iterator[float]:
    """As `Vm.deadline`, for what a guest that answers and could be used is not to
    blame for: raises TemplateError."""
    try:
        with vm.deadline(stage, timeout) as left:
            yield left
    except WaitTimeout as error:
        raise TemplateError(error.message, hint=error.hint) from error


async def _save(vm: Vm, path: Path) -> None:
    from qemuctl.host.discovery import probe

    await vm.power.pause()
    # Only now: a fork's agent must not begin by waiting for somebody to connect.
    vm.agent.release()
    by_name = path if "file" in probe(Path(vm.record.argv[0])).transports else None
    try:
        with path.open("wb") as file:
            await save_state(await vm.monitor(), file, by_name=by_name)
    except MigrationFailed as error:
        raise TemplateError(f"its guest cannot be frozen: {error.message}") from error


def _keep_files(vm: Vm, content: Path, tick: Tick) -> None:
    """Takes the disks out of the VM's folder, and makes an empty overlay on each;
    what the guest said on its console is kept, too."""
    # A guest may have been given no console.
    with contextlib.suppress(FileNotFoundError):
        (content / "serial.log").write_bytes(bounded.content(vm.paths.serial_log))
    if vm.paths.seed.exists():
        shutil.copyfile(vm.paths.seed, content / "seed.iso")
    if not vm.paths.disks.is_dir():
        return
    for folder in (content / "disks", content / "overlays"):
        folder.mkdir()
    for disk in sorted(vm.paths.disks.iterdir()):
        tick()
        kept = content / "disks" / disk.name
        shutil.move(disk, kept)
        create_overlay(content / "overlays" / disk.name, kept, "qcow2")
