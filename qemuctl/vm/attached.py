"""A throwaway VM: with a folder of its own, which dies with its owner."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from qemuctl.paths import VmPaths, private_dir, vms_dir
from qemuctl.process import Child, Undertaker, bury
from qemuctl.spec import Spec, dump
from qemuctl.vm.bring_up import Origin, bring_up, put_down
from qemuctl.vm.definitions import THROWAWAY
from qemuctl.vm.plan import Stages
from qemuctl.vm.resolve import Device
from qemuctl.vm.vm import Vm

Furnish = Callable[[VmPaths], Awaitable[None]]


@dataclass
class Attached:
    """One throwaway VM, and what it dies by; as a block it ends with that."""

    vm: Vm
    child: Child
    undertaker: Undertaker

    async def __aenter__(self) -> Vm:
        return self.vm

    async def __aexit__(self, *_exc: object) -> None:
        await self.end()

    async def end(self) -> None:
        """Ends QEMU and waits until its files are gone."""
        try:
            await put_down(self.vm, self.child)
        finally:
            await self.undertaker.done()


async def begin(
    spec: Spec,
    name: str,
    *,
    furnish: Furnish | None = None,
    boot: Device | None = None,
    progress: Stages | None = None,
    origin: Origin | None = None,
) -> Attached:
    """The throwaway VM that is to have this name, its CPUs stopped.

    ``furnish`` puts files into its new folder. Raises SpecError, HostError,
    ImageError or LaunchError, and leaves nothing then.
    """
    paths = VmPaths.of(name)
    paths.check_sockets()
    private_dir(vms_dir())
    # The undertaker is there before the first file is.
    undertaker = bury(paths.state, paths.run)
    try:
        paths.state.mkdir(mode=0o700)
        (paths.state / THROWAWAY).write_text(str(os.getpid()))
        paths.spec.write_text(dump(spec))
        if furnish is not None:
            await furnish(paths)
        vm, child = await bring_up(
            spec,
            paths,
            attached=True,
            keep_open=[undertaker.pipe],
            boot=boot,
            progress=progress,
            origin=origin,
        )
    except BaseException:
        await undertaker.done()
        raise
    return Attached(vm, child, undertaker)
